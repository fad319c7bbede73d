"""Reward modelling: preferences to a score."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from llmcore.builtin import builtin_data
from llmcore.checkpoint import load_checkpoint
from llmcore.errors import ConfigError
from llmcore.generate.engine import generate
from llmcore.generate.sampling import Sampling
from llmcore.manifest import Manifest
from llmcore.model.dropout import switch_dropout_off
from llmcore.model.transformer import Transformer
from llmcore.options import required
from llmcore.records import Preference
from llmcore.scoring import SCALE_FILE, RewardScale, scale_bytes, scale_of, score_rows
from llmcore.tokenizer import Tokenizer
from llmcore.train.loop import fit
from llmcore.train.rehearsal import Rehearsal
from llmcore.train.run import Run
from llmreward.batches import PreferenceBatches, check_dropped, check_margins, tokenize_groups
from llmreward.config import RewardConfig
from llmreward.evaluate import Report, evaluate_groups
from llmreward.loss import reward_loss
from llmreward.preferences import load_preferences
from llmreward.prompts import longest_answer, prompts_to_answer

WATCHED = 400
"""Held-out prompts scored while training; the finished model meets all of them."""


def run(
    config: RewardConfig, out: Path, *, resume: str | Rehearsal = "auto", json: bool = False, quiet: bool = False
) -> Manifest:
    """Train a reward model on preferences, beginning from a policy, and write a reward to `out`."""
    base = required(config.inputs.base, "--base", "the policy that the reward model begins from")
    make = isinstance(resume, str)
    data = Path(config.inputs.data) if config.inputs.data else builtin_data("preferences", make=make)
    torch.manual_seed(config.train.seed)
    start = load_checkpoint(base, expect="policy", head="scalar")
    tokenizer = start.tokenizer
    if config.normalize.prompts and not looks_back(start.model):
        raise ConfigError(
            f"{base} is an encoder, which answers no prompts to normalize the reward over",
            hint="begin from a causal policy, or set normalize.prompts=0",
        )
    model = config.trunk.build(start.model, seed=config.train.seed)
    switch_dropout_off(model)
    context = model.config.context
    if config.token_share and not looks_back(model):
        raise ConfigError("token_share needs a model that looks back only, not an encoder", hint="set token_share=0")
    train, valid = load_preferences(data)
    check_margins(train.records)
    groups = tokenize_groups(train.records, tokenizer, data=config.data, context=context)
    held_out = tokenize_groups(valid.records, tokenizer, data=config.data, context=context)
    counts = {**groups.counts, **train.unusable}
    check_dropped(counts, allowed=config.data.max_dropped)
    job = Run(
        out,
        made_by="llmreward run",
        config=config,
        parents={"base": start.manifest, "data": train.manifest},
        tokenizer=tokenizer,
        resume=resume,
        json=json,
        quiet=quiet,
        facts={"pairs": facts_of(counts, held_out=held_out.counts["pairs"], config=config)},
        next_commands=[f"llmreward eval {out} --data {data}", f"llmrl ppo --policy {base} --reward {out}"],
    )

    watched = held_out.kept[:WATCHED]

    def evaluate(model: nn.Module) -> dict[str, float]:
        assert isinstance(model, Transformer)
        return figures(evaluate_groups(model, watched, pad_id=tokenizer.pad_id))

    with job:
        source = PreferenceBatches(groups.kept, pad_id=tokenizer.pad_id, share=looks_back(model), train=config.train)
        fit(
            model,
            source,
            reward_loss(config.loss.build(), token_share=config.token_share),
            config.train,
            job,
            evaluate=evaluate if watched else None,
        )
        if job.complete is not None:
            return job.finish(model)
        with job.engine.whole(model) as whole:
            speed = whole.activation_dtype
            whole.activation_dtype = torch.float32  # as `load_scorer` will score
            metrics = figures(evaluate_groups(whole, held_out.kept, pad_id=tokenizer.pad_id)) if held_out.kept else {}
            scale = measure_scale(whole, tokenizer, base=base, records=train.records, config=config, dtype=speed)
        return job.finish(
            model,
            kind="reward",
            metrics={f"val_{name}": value for name, value in metrics.items()},
            counts={**counts, "held_out_pairs": held_out.counts["pairs"]},
            extra_files={SCALE_FILE: scale_bytes(scale)},
        )


def measure_scale(
    model: Transformer,
    tokenizer: Tokenizer,
    *,
    base: Path,
    records: Sequence[Preference],
    config: RewardConfig,
    dtype: torch.dtype = torch.float32,
) -> RewardScale:
    """The scale under which answers of the base policy, sampled in `dtype`, have mean 0 and deviation 1."""
    settings = config.normalize
    policy = load_checkpoint(base, expect="policy", device=next(model.parameters()).device).model
    policy.activation_dtype = dtype
    context = min(model.config.context, policy.config.context)
    prompts = prompts_to_answer(records, tokenizer, settings=settings, context=context)
    if not prompts:
        return RewardScale()
    sampling = Sampling(
        max_new_tokens=longest_answer(settings, context),
        temperature=settings.temperature,
        seed=config.train.seed,
    )
    answers = generate(policy, prompts, sampling, stop_ids=tokenizer.stop_ids, num_samples=settings.samples)
    rows = [[*prompt, *answer.ids] for prompt, samples in zip(prompts, answers, strict=True) for answer in samples]
    return scale_of(score_rows(model, rows, pad_id=tokenizer.pad_id))


def figures(report: Report) -> dict[str, float]:
    """The figures of a report that are single numbers."""
    return {
        "loss": report.loss.value,
        "accuracy": report.accuracy.value,
        "accuracy_low": report.accuracy.low,
        "accuracy_high": report.accuracy.high,
        "longer_wins_accuracy": report.ruler.value,
        "margin": report.margin.value,
        "calibration_error": report.calibration_error,
        "length_correlation": report.length_correlation.value,
    }


def facts_of(counts: dict[str, int], *, held_out: int, config: RewardConfig) -> str:
    """The data in a few words for the start panel."""
    others = [f"{count:,} {name.replace('_', ' ')}" for name, count in sorted(counts.items()) if name != "pairs"]
    epochs = config.train.steps * config.train.batch / max(counts["prompts"], 1)
    return ", ".join([f"{counts['pairs']:,} (+ {held_out:,} held out)", *others, f"{epochs:.1f} epochs"])


def looks_back(model: Transformer) -> bool:
    """Whether a token sees none that follows it."""
    return model.config.attention.sight().causal
