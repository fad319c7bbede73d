"""Steps of GRPO as `llmrl grpo` takes them: sample groups, reward, advantages, update; the prompts are new in each."""

import argparse
import random
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llama_shape import Figures, model_config
from stopwatch import timed

if TYPE_CHECKING:
    from llmcore.tokenizer import Tokenizer
    from llmrl.experience import Experiences
    from llmrl.grpo import GRPO
    from llmrl.rewards.reward import Sample


def add_options(parser: argparse.ArgumentParser) -> None:
    sizes = {"prompts": 8, "group": 8, "prompt": 64, "new": 64, "steps": 6, "warmup": 2, "iterations": 1}
    for name, size in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=size, help=f"default {size}")
    parser.add_argument("--beta", type=float, default=0.0, help="weight of the KL; above 0 there is a reference")
    parser.add_argument("--profile", type=Path, help="write torch's profile of two more steps here")
    parser.set_defaults(vocab=None, batch=None)


def measure(options: argparse.Namespace) -> Figures:
    from llmrl.experience import Experiences

    random.seed(options.seed)
    with tempfile.TemporaryDirectory() as name:
        algorithm = build(options, Path(name))
        source = Experiences(algorithm, seed=options.seed, epochs=options.iterations)
        take = stepper(algorithm, source)
        times = [timed(take)[0] for _ in range((options.warmup + options.steps) * options.iterations)]
        if options.profile:
            profile(take, options)
    kept = times[options.warmup * options.iterations :]
    middle = statistics.mean(kept) if options.iterations > 1 else statistics.median(kept)
    completions = options.prompts * options.group
    rollout_s = middle * options.iterations
    return {
        "metric": "completions_per_s",
        "completions_per_s": round(completions / rollout_s, 2),
        "prompts_per_s": round(options.prompts / rollout_s, 2),
        "new_tokens_per_s": round(completions * options.new / rollout_s, 1),
        "s_per_optim_step": round(middle, 3),
        "step_s": [round(seconds, 3) for seconds in times],
        "beta": options.beta,
        "iterations": options.iterations,
        **{name: getattr(options, name) for name in ("prompts", "group", "prompt", "new")},
    }


def build(options: argparse.Namespace, folder: Path) -> "GRPO":
    """A random model, prompts of random letters, and the peers' reward: how many different letters there are."""
    from llmcore.records import Message, Prompt
    from llmcore.tokenizer import Tokenizer
    from llmcore.train.device import place, resolve
    from llmrl.config import GRPOConfig
    from llmrl.grpo import GRPO
    from llmrl.prompts import Prompts
    from llmrl.rewards.sums import Rewards, Term
    from llmrl.samples import SampleLog

    tokenizer = Tokenizer.byte_level()
    options.vocab, options.batch = tokenizer.vocab_size, options.prompts * options.group
    model = model_config(options, context=options.prompt + options.new).build(seed=options.seed)
    placement = resolve("cpu", options.dtype)
    place(model, placement)
    reference = model_config(options, context=options.prompt + options.new).build(seed=options.seed)
    place(reference, placement)
    record = Prompt(prompt=(Message(role="user", content="?"),))
    prompts = Prompts([record] * options.prompts * (options.steps + 2), tokenizer, longest=options.prompt)
    prompts.ids = [random.choices(range(97, 123), k=options.prompt) for _ in prompts.ids]
    settings = {
        "grpo": {"num_generations": options.group, "beta": options.beta, "num_iterations": options.iterations},
        "rollout": {"max_completion_length": options.new},
        "train": {"batch": options.batch, "seed": options.seed},
    }

    def different(samples: "Sequence[Sample]") -> list[float]:
        return [float(len(set(sample.text))) for sample in samples]

    return GRPO(
        model,
        prompts=prompts,
        rewards=Rewards([Term("different", 1.0, different)]),
        tokenizer=endless(tokenizer),
        config=GRPOConfig.model_validate(settings),
        reference=reference.requires_grad_(False) if options.beta else None,
        log=SampleLog(folder / "samples.jsonl", every=10, count=8),
    )


def endless(tokenizer: "Tokenizer") -> "Tokenizer":
    """The same tokenizer, of which no token ends a completion: the peers too are made to go on to the last token."""
    tokenizer.stop_ids = frozenset()
    return tokenizer


def stepper(algorithm: "GRPO", source: "Experiences") -> Callable[[], object]:
    """One optimizer step, with the rollout where one is due."""
    from llmcore.train.loop import train_step
    from llmcore.train.optim import AdamW

    optimizer = AdamW().build(algorithm.policy, 1e-5)
    steps = source.steps_from(0)

    def take() -> object:
        return train_step(algorithm.policy, optimizer, next(steps), algorithm.loss, clip=1.0)

    return take


def profile(take: Callable[[], object], options: argparse.Namespace) -> None:
    """torch's profile of two steps."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        take()
        take()
    table = profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=45, max_name_column_width=70)
    options.profile.write_text(table)
