"""Whole runs on a tiny policy: they learn, resume to the bit, and refuse what does not fit."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from forked import Done, run
from llmcore.checkpoint import load_checkpoint, save_model
from llmcore.config import load_config
from llmcore.errors import ArtifactError, ConfigError, DataError
from llmcore.manifest import read_manifest, write_manifest
from llmcore.model.config import ModelConfig
from llmcore.records import Message, Prompt, write_records
from llmcore.scoring import SCALE_FILE, RewardScale, scale_bytes
from llmcore.settings_commands import template
from llmcore.storage import sha256_file
from llmcore.tokenizer import SpecialTokens, Tokenizer
from llmcore.train.metrics import read_metrics
from llmrl.config import GRPOConfig, PPOConfig
from llmrl.evaluate import evaluate_checkpoints, report_lines
from llmrl.run import grpo, next_command, ppo
from llmrl.show import rollout_lines, show_rollout

TOKENIZER = Tokenizer.byte_level()
SMALL = [
    "train.batch=16",
    "train.lr=0.003",
    "train.dtype=fp32",
    "train.device=cpu",
    "train.log_every=1",
    "train.eval_every=4",
    "train.save_every=3",
    "rollout.max_completion_length=6",
    "rollout.eval_prompts=4",
    "rollout.log_samples=2",
    "rewards.short.kind=length",
    "rewards.short.target=2",
    "inputs.reward=short",
]


def write_policy(
    folder: Path, *, seed: int = 0, tokenizer: Tokenizer = TOKENIZER, kind: str = "policy", **settings: object
) -> Path:
    """An untrained tiny model as an artifact, which ends its turn now and then."""
    folder.mkdir()
    head = "scalar" if kind == "reward" else "lm"
    shape = {"vocab_size": tokenizer.vocab_size, "width": 16, "depth": 1, "context": 64, "head": head}
    model = ModelConfig.model_validate(shape | settings).build(seed=seed)
    with torch.no_grad():
        model.embedding.weight[tokenizer.end_of_turn_id] *= 8
    files = save_model(folder, model, tokenizer)
    if kind == "reward":
        (folder / SCALE_FILE).write_bytes(scale_bytes(RewardScale()))
        files.append(SCALE_FILE)
    write_manifest(folder, kind=kind, made_by="test", config={}, files=files)
    return folder


@pytest.fixture
def inputs(tmp_path: Path) -> list[str]:
    """Settings that name a policy and prompts."""
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    for split, start in (("train", 0), ("valid", 50)):
        rows = [Prompt(prompt=(Message(role="user", content=f"{start + i}"),), answer=str(i)) for i in range(12)]
        write_records(prompts / f"{split}.jsonl", rows)
    write_policy(tmp_path / "policy")
    return [*SMALL, f"inputs.policy={tmp_path / 'policy'}", f"inputs.prompts={prompts}"]


ALGORITHMS = {
    "grpo": (grpo, GRPOConfig, ["train.steps=8", "grpo.num_generations=4"]),
    "grpo-iterations": (grpo, GRPOConfig, ["train.steps=8", "grpo.num_generations=4", "grpo.num_iterations=3"]),
    "grpo-refilled": (
        grpo,
        GRPOConfig,
        ["train.steps=8", "grpo.num_generations=2", "grpo.refill_attempts=2", "grpo.kl_in_reward=true"],
    ),
    "ppo": (
        ppo,
        PPOConfig,
        ["train.steps=8", "ppo.num_mini_batches=2", "ppo.kl_target=1", "ppo.normalize_scores=true", "ppo.stop_kl=0.01"],
    ),
    "ppo-separate": (
        ppo,
        PPOConfig,
        ["train.steps=8", "ppo.critic.kind=separate", "ppo.critic.lr=0.01", "ppo.vf_coef=1", "ppo.dual_clip=3"],
    ),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_run_stopped_at_any_step_ends_in_the_same_model(name: str, inputs: list[str], tmp_path: Path) -> None:
    stage, settings_class, settings = ALGORITHMS[name]
    whole = stage(load_config(settings_class, [*inputs, *settings]), tmp_path / "whole", quiet=True)  # type: ignore[operator]
    for stop in (2, 5, 7):
        with pytest.raises(SystemExit):
            stage(  # type: ignore[operator]
                load_config(settings_class, [*inputs, *settings, f"train.stop_after={stop}"]),
                tmp_path / "parts",
                quiet=True,
            )
    again = stage(load_config(settings_class, [*inputs, *settings]), tmp_path / "parts", quiet=True)  # type: ignore[operator]
    assert again.files["model.safetensors"].sha256 == whole.files["model.safetensors"].sha256
    assert whole.files["model.safetensors"] != read_manifest(tmp_path / "policy").files["model.safetensors"]
    assert again.id == whole.id
    timed = {"seconds", "tokens_per_s"}
    rows, parts = (
        [{k: v for k, v in row.items() if k not in timed} for row in read_metrics(tmp_path / run / "run/metrics.jsonl")]
        for run in ("whole", "parts")
    )
    assert rows == parts
    samples = [(tmp_path / run / "run/samples.jsonl").read_text() for run in ("whole", "parts")]
    assert samples[0] == samples[1] and len(samples[0].splitlines()) >= 4


@pytest.mark.parametrize("kind", ["gqa", "mla"])
@pytest.mark.parametrize("name", ["grpo-iterations", "ppo-separate"])
def test_a_policys_dropout_is_off(name: str, kind: str, inputs: list[str], tmp_path: Path) -> None:
    """Of embeddings and of attention: the run is that of a policy which never had any."""
    stage, settings_class, settings = ALGORITHMS[name]
    made = []
    for dropout in (0.0, 0.5):
        attention = {"kind": kind, "heads": 2, "dropout": dropout}
        policy = write_policy(tmp_path / f"policy-{dropout}", attention=attention, dropout=dropout)
        config = load_config(settings_class, [*inputs, *settings, f"inputs.policy={policy}"])
        made.append(stage(config, tmp_path / f"out-{dropout}", quiet=True))  # type: ignore[operator]
    calm, noisy = (manifest.files for manifest in made)
    assert noisy["model.safetensors"].sha256 == calm["model.safetensors"].sha256
    assert noisy["model.json"].sha256 == calm["model.json"].sha256


@pytest.mark.parametrize("name", ["grpo-iterations", "ppo"])
def test_the_same_seed_gives_the_same_curve_and_another_seed_another(
    name: str, inputs: list[str], tmp_path: Path
) -> None:
    stage, settings_class, settings = ALGORITHMS[name]
    curves = []
    for number, seed in enumerate((0, 0, 1)):
        config = load_config(settings_class, [*inputs, *settings, "train.steps=4", f"train.seed={seed}"])
        stage(config, tmp_path / str(number), quiet=True)  # type: ignore[operator]
        rows = read_metrics(tmp_path / str(number) / "run/metrics.jsonl")
        curves.append([(row["loss"], row["grad_norm"], row["completions/mean_length"]) for row in rows])
    assert curves[0] == curves[1] != curves[2]


def test_the_first_step_starts_at_the_reference(inputs: list[str], tmp_path: Path) -> None:
    for stage, settings_class, settings in (ALGORITHMS["grpo-iterations"], ALGORITHMS["ppo"]):
        out = tmp_path / settings_class.__name__
        stage(load_config(settings_class, [*inputs, *settings]), out, quiet=True)  # type: ignore[operator]
        first = read_metrics(out / "run/metrics.jsonl")[0]
        assert abs(first["objective/kl"]) < 1e-4
        assert first.get("ratio/mean", first.get("val/ratio")) == pytest.approx(1, abs=1e-4)
        assert first.get("clip_ratio/region_mean", first.get("policy/clipfrac_avg")) == 0
        assert first["grad_norm"] > 0
        assert first.get("ratio/max_gap", first.get("val/ratio_max_gap")) < 1e-4
        assert 0 <= first["completions/clipped_ratio"] <= 1 and first["rewards/short/mean"] == first["reward"]


def test_the_artifact_names_its_parents_and_leaves_them_alone(inputs: list[str], tmp_path: Path) -> None:
    reward = write_policy(tmp_path / "reward", seed=3, kind="reward")
    before = [sha256_file(tmp_path / name / "model.safetensors") for name in ("policy", "reward")]
    config = load_config(PPOConfig, [*inputs, "train.steps=2", f"inputs.reward={reward} + 0.5*short + 0*exact"])
    made = ppo(config, tmp_path / "out", quiet=True)
    assert set(made.parents) == {"policy", "reward", "prompts"}
    assert made.parents["policy"].id == read_manifest(tmp_path / "policy").id
    assert made.kind == "policy" and made.made_by == "llmrl ppo"
    assert before == [sha256_file(tmp_path / name / "model.safetensors") for name in ("policy", "reward")]
    figures = read_metrics(tmp_path / "out/run/metrics.jsonl")[0]
    assert {"rewards/reward/mean", "rewards/short/std", "rewards/exact/mean", "critic/vf_explained_var"} <= set(figures)
    total = figures["rewards/reward/mean"] + 0.5 * figures["rewards/short/mean"]
    assert figures["reward"] == pytest.approx(total, abs=1e-6)
    load_checkpoint(tmp_path / "out")
    sample = json.loads((tmp_path / "out/run/samples.jsonl").read_text().splitlines()[0])
    assert {"prompt", "completion", "rewards", "reward", "advantage"} <= set(sample)


def test_what_does_not_fit_is_refused(inputs: list[str], tmp_path: Path) -> None:
    other = Tokenizer(TOKENIZER.files()["tokenizer.json"], SpecialTokens(bos=None))
    reward = write_policy(tmp_path / "other", tokenizer=other, kind="reward")

    def attempt(*settings: str) -> None:
        grpo(load_config(GRPOConfig, [*inputs, "train.steps=1", *settings]), tmp_path / "out", quiet=True)

    with pytest.raises(ArtifactError, match=f"{other.sha256[:16]}.*{TOKENIZER.sha256[:16]}"):
        attempt(f"inputs.reward={reward}")
    with pytest.raises(ArtifactError, match="holds a reward"):
        attempt(f"inputs.policy={reward}")
    with pytest.raises(ArtifactError, match="holds a policy"):
        attempt(f"inputs.reward={tmp_path / 'policy'}")
    with pytest.raises(ArtifactError, match="another tokenizer"):
        attempt(f"inputs.reference={write_policy(tmp_path / 'reference', tokenizer=other)}")
    with pytest.raises(ConfigError, match="--policy is missing"):
        attempt("inputs.policy=none")
    with pytest.raises(ConfigError, match="--reward is missing"):
        attempt("inputs.reward=none")
    with pytest.raises(ConfigError, match="max_completion_length"):
        attempt("rollout.max_completion_length=64")
    with pytest.raises(DataError, match="12 of 12 prompts"):
        attempt("rollout.max_completion_length=60")
    with pytest.raises(ConfigError, match="no multiple"):
        attempt("grpo.num_generations=5")
    with pytest.raises(ConfigError, match="nothing compares with it"):
        attempt("grpo.beta=0", f"inputs.reference={tmp_path / 'policy'}")
    with pytest.raises(ConfigError, match="beta above 0"):
        attempt("grpo.beta=0", "grpo.kl_in_reward=true")
    assert not (tmp_path / "out").exists()


def test_a_critic_that_does_not_fit_is_refused(inputs: list[str], tmp_path: Path) -> None:
    def attempt(critic: Path, *settings: str) -> None:
        config = load_config(PPOConfig, [*inputs, "train.steps=1", f"inputs.critic={critic}", *settings])
        ppo(config, tmp_path / "out", quiet=True)

    reward = write_policy(tmp_path / "reward", kind="reward")
    with pytest.raises(ConfigError, match=r"ppo\.critic\.kind=separate"):
        attempt(reward)
    other = Tokenizer(TOKENIZER.files()["tokenizer.json"], SpecialTokens(bos=None))
    with pytest.raises(ArtifactError, match="another tokenizer"):
        attempt(write_policy(tmp_path / "other", tokenizer=other), "ppo.critic.kind=separate")
    attempt(reward, "ppo.critic.kind=separate")
    assert read_manifest(tmp_path / "out").parents["critic"].id == read_manifest(reward).id


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_adapters_take_the_policy_below_them_as_the_reference(name: str, inputs: list[str], tmp_path: Path) -> None:
    """The same policy as a reference of its own gives the same figures, and the policy is left as it is."""
    stage, settings_class, settings = ALGORITHMS[name]
    settings = [*inputs, *settings, "lora.rank=2", "lora.dropout=0.5"]
    below = stage(load_config(settings_class, settings), tmp_path / "below", quiet=True)  # type: ignore[operator]
    apart = [*settings, f"inputs.reference={tmp_path / 'policy'}"]
    stage(load_config(settings_class, apart), tmp_path / "apart", quiet=True)  # type: ignore[operator]
    assert below.kind == "adapter" and set(below.files) == {"adapter.json", "adapter.safetensors"}
    figures = [read_metrics(tmp_path / run / "run/metrics.jsonl") for run in ("below", "apart")]
    for ours, theirs in zip(*figures, strict=True):
        assert ours["objective/kl"] == pytest.approx(theirs["objective/kl"], abs=1e-5)
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
    assert abs(figures[0][0]["objective/kl"]) < 1e-5 < abs(figures[0][-1]["objective/kl"])
    model, base = (load_checkpoint(tmp_path / run).model for run in ("below", "policy"))
    moved = [not torch.equal(a, b) for a, b in zip(model.parameters(), base.parameters(), strict=True)]
    assert any(moved) and not all(moved)


def test_k1_in_the_loss_is_refused_because_it_does_nothing() -> None:
    with pytest.raises(ConfigError, match="kl_in_reward"):
        load_config(GRPOConfig, ["grpo.kl_estimator=k1"])


def test_evaluation_compares_policies_on_the_same_prompts(inputs: list[str], tmp_path: Path) -> None:
    policy, other = tmp_path / "policy", write_policy(tmp_path / "second", seed=5)
    report = evaluate_checkpoints(
        [policy, other], reward="length", prompts=tmp_path / "prompts", samples=3, max_new_tokens=6
    )
    first, second = report[str(policy)], report[str(other)]
    assert first["sampled/kl"]["value"] == pytest.approx(0, abs=1e-5)
    assert second["sampled/kl"]["value"] > 0.01
    assert second["sampled/gain"]["value"] == pytest.approx(
        second["sampled/reward"]["value"] - first["sampled/reward"]["value"]
    )
    assert first["sampled/reward"]["low"] < first["sampled/reward"]["value"] < first["sampled/reward"]["high"]
    assert first["sampled/best_of_3"]["value"] >= first["sampled/reward"]["value"]
    best = first["sampled/best_of_3"]["value"]
    assert second["sampled/gain_over_best_of_3"]["value"] == pytest.approx(second["sampled/reward"]["value"] - best)
    assert first["sampled/best_of_3/rewards/length"]["value"] == pytest.approx(best)
    assert any("greedy/length" in line for line in report_lines(report))
    again = evaluate_checkpoints(
        [policy, other], reward="length", prompts=tmp_path / "prompts", samples=3, max_new_tokens=6
    )
    assert again == report


def test_a_rollout_can_be_looked_at(inputs: list[str], tmp_path: Path) -> None:
    record = Prompt(prompt=(Message(role="user", content="1"),), answer="1")
    rows = show_rollout(
        tmp_path / "policy", record, reward="length", samples=5, temperature=1.0, max_new_tokens=6, seed=0
    )
    assert len(rows) == 5
    lines = rollout_lines([{**row, "rewards": {"a": 1.0, "b": None}} for row in rows])
    assert len(lines) == 5 and all("  a 1.0  b None" in line and " A " in line for line in lines)
    assert sum(float(row["advantage"]) for row in rows) == pytest.approx(0, abs=1e-4)  # type: ignore[arg-type]


DO_NOTHING = {
    "kl_estimator=k2 does nothing": (GRPOConfig, ["grpo.kl_in_reward=true", "grpo.kl_estimator=k2"]),
    "delta does nothing": (GRPOConfig, ["grpo.loss_type=cispo", "grpo.delta=4"]),
    r"delta is 1\.1": (GRPOConfig, ["grpo.delta=1.1"]),
    r"horizon=500\.0 does nothing": (PPOConfig, ["ppo.horizon=500"]),
}


@pytest.mark.parametrize("message", DO_NOTHING)
def test_settings_that_do_nothing_are_refused(message: str) -> None:
    settings_class, settings = DO_NOTHING[message]
    with pytest.raises(ConfigError, match=message):
        load_config(settings_class, settings)
    load_config(settings_class, settings[:-1])


def test_a_settings_file_as_init_writes_it_is_taken(tmp_path: Path) -> None:
    """It gives every setting, also those that do nothing as they are."""
    for settings_class, extra in ((GRPOConfig, "grpo.kl_in_reward=true"), (PPOConfig, "ppo.kl_coef=0.1")):
        path = tmp_path / f"{settings_class.__name__}.toml"
        path.write_text("\n".join(template(settings_class())))
        load_config(settings_class, [str(path), extra])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--answer", "4"], "--answer '4' does nothing without --prompt"),
        (["--prompt", "2 + 2", "--prompts", "some.jsonl"], "--prompts 'some.jsonl' does nothing beside --prompt"),
    ],
    ids=["answer", "prompts"],
)
def test_options_of_a_rollout_that_do_nothing_are_refused(words: list[str], message: str, tmp_path: Path) -> None:
    refused = run("llmrl", "rollout", tmp_path, "--reward", "literal", *words, cwd=tmp_path)
    assert refused.code == 2 and message in refused.err


def test_the_command_that_is_printed_next_runs_as_it_stands(inputs: list[str], tmp_path: Path) -> None:
    """With the run's prompts, its longest completion, and the rule that its settings name."""
    config = load_config(GRPOConfig, [*inputs, *ALGORITHMS["grpo"][2], "train.steps=2"])
    grpo(config, tmp_path / "out of the run", quiet=True)
    words = shlex.split(next_command(config, tmp_path / "out of the run"))
    done = run(*words, "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert list(report) == [str(tmp_path / "policy"), str(tmp_path / "out of the run")]
    assert {"sampled/rewards/short", "greedy/gain"} <= report[str(tmp_path / "out of the run")].keys()
    assert max(figures["sampled/length"]["value"] for figures in report.values()) <= 6


def test_a_rule_of_ones_own_is_what_the_policies_or_the_settings_say(inputs: list[str], tmp_path: Path) -> None:
    def attempt(*words: str | Path) -> Done:
        prompts = ["--prompts", tmp_path / "prompts", "--max-new-tokens", "6"]
        return run("llmrl", *words, *prompts, "--reward", "short", "--json", cwd=tmp_path)

    policy = tmp_path / "policy"
    unknown = attempt("eval", policy)
    assert unknown.code == 2 and "'short' is neither a rule nor a folder" in unknown.err
    said = ["rewards.short.kind=length", "rewards.short.target=5"]
    earned = json.loads(attempt("eval", policy, *said).out)[str(policy)]["sampled/rewards/short"]["value"]
    assert 0 < earned < 1
    assert len(json.loads(attempt("rollout", policy, *said).out)) == 8
    for number in (4, 5):
        config = load_config(GRPOConfig, [*inputs, *ALGORITHMS["grpo"][2], f"rewards.short.target={number}"])
        grpo(config, tmp_path / f"target-{number}", quiet=True)
    assert len(json.loads(attempt("rollout", tmp_path / "target-4").out)) == 8
    ours = json.loads(attempt("eval", policy, tmp_path / "target-5").out)
    assert ours[str(policy)]["sampled/rewards/short"]["value"] == earned
    both = attempt("eval", tmp_path / "target-4", tmp_path / "target-5")
    assert both.code == 2 and "one reward for one policy and another for another" in both.err
    assert attempt("eval", tmp_path / "target-4", tmp_path / "target-5", *said).code == 0


def test_a_single_prompt_cannot_be_held_out(inputs: list[str], tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"prompt": "1 + 1", "answer": "2"}\n')
    for words in (["eval", tmp_path / "policy"], ["rollout", tmp_path / "policy"]):
        refused = run("llmrl", *words, "--prompts", "one.jsonl", "--reward", "literal", cwd=tmp_path)
        assert refused.code == 2 and "'one.jsonl' has no held-out prompt" in refused.err
    short = run("llmrl", "eval", tmp_path / "policy", "--prompts", tmp_path / "prompts", "--reward", "literal",
                "--max-new-tokens", "60", cwd=tmp_path)  # fmt: skip
    assert short.code == 2 and "lower --max-new-tokens" in short.err and "rollout." not in short.err


def test_two_reward_models_are_two_parents_whatever_their_folders_are_called(inputs: list[str], tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    first = write_policy(tmp_path / "reward-2", seed=3, kind="reward")
    second = write_policy(tmp_path / "models/policy", seed=4, kind="reward")
    third = write_policy(tmp_path / "models/reward", seed=5, kind="reward")
    expression = f"{first} + {second} + {third} + {third}"
    config = load_config(PPOConfig, [*inputs, "train.steps=2", f"inputs.reward={expression}"])
    made = ppo(config, tmp_path / "out", quiet=True)
    ids = {role: manifest.id for role, manifest in made.parents.items() if role != "prompts"}
    folders = {"policy": tmp_path / "policy", "reward": first, "reward-2": second, "reward-3": third, "reward-4": third}
    assert ids == {role: read_manifest(folder).id for role, folder in folders.items()}
    figures = read_metrics(tmp_path / "out/run/metrics.jsonl")[0]
    for name in ("reward-2", "policy", "reward", "reward-3"):
        assert f"rewards/{name}/mean" in figures


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grpo-iterations", "ppo"])
def test_kill_minus_nine_costs_nothing(name: str, inputs: list[str], tmp_path: Path) -> None:
    settings = ALGORITHMS[name][2]
    algorithm = name.partition("-")[0]
    command = [sys.executable, "-m", "llmrl", algorithm, *inputs, *settings, "train.steps=60", "train.save_every=7"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--out", str(tmp_path / "whole"), "-q"], check=True, env=environment)
    for kill_at in (3, 20, 40):
        process = subprocess.Popen([*command, "--out", str(tmp_path / "killed"), "-q"], env=environment)
        metrics = tmp_path / "killed/run/metrics.jsonl"
        while process.poll() is None:
            if metrics.exists() and metrics.read_bytes().count(b"\n") >= kill_at:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.01)
        assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    subprocess.run([*command, "--out", str(tmp_path / "killed"), "-q"], check=True, env=environment)
    whole, killed = (read_manifest(tmp_path / run) for run in ("whole", "killed"))
    assert killed.files == whole.files and killed.id == whole.id


def test_a_train_table_given_in_part_keeps_the_stages_own_defaults() -> None:
    config = load_config(GRPOConfig, ["train.steps=7"])
    assert (config.train.steps, config.train.batch) == (7, GRPOConfig().train.batch)
    assert config.train.optimizer == GRPOConfig().train.optimizer
    assert load_config(GRPOConfig, ["grpo.scale_rewards=none"]).grpo.scale_rewards == "none"
