import json
from pathlib import Path

import pytest

from llmcore.checkpoint import load_checkpoint, save_model
from llmcore.errors import ArtifactError, ConfigError, DataError, TrainingError
from llmcore.manifest import verify_artifact, write_manifest
from llmcore.model.attention import GroupedQuery
from llmcore.model.config import ModelConfig
from llmcore.records import Message, Preference, write_records
from llmcore.scoring import SCALE_FILE, load_scorer, read_scale, score_rows, scored_row
from llmcore.tokenizer import Tokenizer
from llmcore.train.config import TrainConfig
from llmreward.config import Normalization, RewardConfig, RewardInputs
from llmreward.evaluate import evaluate_file, lines
from llmreward.invariance import INVARIANT
from llmreward.run import prompts_to_answer, run
from llmreward.score import answers_to, conversations_in, score_conversations

SHARED = Path(__file__).parents[4] / "shared" / "data"
REAL = {
    "hh_rlhf": SHARED / "hh_rlhf" / "harmless-base" / "test.head.jsonl.gz",
    "rasbt": SHARED / "rasbt" / "instruction-data-with-preference.json",
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A tiny untrained policy."""
    config = ModelConfig(vocab_size=260, width=32, depth=1, context=64, attention=GroupedQuery(heads=2))
    folder = tmp_path / "policy"
    folder.mkdir()
    files = save_model(folder, config.build(seed=0), Tokenizer.byte_level())
    write_manifest(folder, kind="policy", made_by="test", config={}, files=files)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Pairs in which the answer `y` is better than `n`."""
    path = tmp_path / "pairs.jsonl"
    rows = [
        Preference(prompt=(Message(role="user", content=f"{n}"),), chosen="y" * (1 + n % 2), rejected="n" * (1 + n % 3))
        for n in range(40)
    ]
    write_records(path, rows)
    return path


def settings(base: Path, data: Path, **train: object) -> RewardConfig:
    return RewardConfig(
        inputs=RewardInputs(base=str(base), data=str(data)),
        normalize=Normalization(prompts=8, samples=2, max_new_tokens=8),
        train=TrainConfig.model_validate(
            {"steps": 30, "batch": 8, "lr": 3e-3, "device": "cpu", "dtype": "fp32", "eval_every": 30, **train}
        ),
    )


def test_a_run_learns_the_pairs_and_writes_a_reward(tmp_path: Path, base: Path, data: Path) -> None:
    manifest = run(settings(base, data), tmp_path / "reward", quiet=True)
    assert manifest.kind == "reward" and set(manifest.parents) == {"base", "data"}
    assert manifest.metrics["val_accuracy"] == 1.0 and manifest.metrics["accuracy"] == 1.0
    assert manifest.metrics["val_accuracy_low"] < 1.0
    assert manifest.counts["pairs"] + manifest.counts["held_out_pairs"] == 40
    assert SCALE_FILE in manifest.files and manifest.needs == {}
    verify_artifact(tmp_path / "reward", expect="reward")
    scorer = load_scorer(tmp_path / "reward")
    good, bad = (scored_row([Message(role="user", content="7")], answer, scorer.tokenizer) for answer in ("y", "n"))
    assert float(scorer.score([good])) > float(scorer.score([bad]))
    found = evaluate_file(scorer, data)
    assert found.report.accuracy.value == 1.0
    assert max(found.invariance[name] for name in INVARIANT) < 1e-4
    assert any("longer answer wins" in line for line in lines(found))


def test_a_run_learns_rankings_of_which_each_prompt_is_one_item(tmp_path: Path, base: Path) -> None:
    path = tmp_path / "ranked.jsonl"
    rows = [{"prompt": f"{n}", "ranked": ["y" * (1 + n % 3), "m" * (1 + n % 2), "n" * (1 + n % 4)]} for n in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    manifest = run(settings(base, path, steps=60), tmp_path / "reward", quiet=True)
    assert manifest.counts["pairs"] == 3 * manifest.counts["prompts"]
    assert manifest.metrics["val_accuracy"] == 1.0
    scorer = load_scorer(tmp_path / "reward")
    best, middle, worst = (
        float(scorer.score([scored_row([Message(role="user", content="7")], answer, scorer.tokenizer)]))
        for answer in ("yy", "m", "nn")
    )
    assert best > middle > worst


def test_the_finished_reward_has_mean_0_and_deviation_1_over_samples_of_the_base(
    tmp_path: Path, base: Path, data: Path
) -> None:
    from llmcore.generate.engine import generate
    from llmcore.generate.sampling import Sampling
    from llmreward.preferences import load_preferences

    config = settings(base, data, steps=5)
    run(config, tmp_path / "reward", quiet=True)
    scorer = load_scorer(tmp_path / "reward")
    policy = load_checkpoint(base)
    records = load_preferences(data).train.records
    prompts = prompts_to_answer(records, policy.tokenizer, settings=config.normalize, context=64)
    answers = generate(
        policy.model,
        prompts,
        Sampling(max_new_tokens=8, seed=config.train.seed),
        stop_ids=policy.tokenizer.stop_ids,
        num_samples=2,
    )
    rows = [[*prompt, *answer.ids] for prompt, samples in zip(prompts, answers, strict=True) for answer in samples]
    rewards = scorer.score(rows)
    assert rewards.shape == (16,)
    assert float(rewards.mean()) == pytest.approx(0.0, abs=1e-4)
    assert float(rewards.std(correction=0)) == pytest.approx(1.0, abs=1e-4)


def test_the_best_of_a_run_that_holds_nothing_out_is_refused_before_its_first_step(tmp_path: Path, base: Path) -> None:
    one = Preference(prompt=(Message(role="user", content="the only prompt"),), chosen="y", rejected="n")
    write_records(tmp_path / "one.jsonl", [one])
    config = settings(base, tmp_path / "one.jsonl", steps=4, eval_every=2, artifact="best", keep_best=1)
    with pytest.raises(TrainingError, match="no evaluation to rank by"):
        run(config, tmp_path / "reward", quiet=True)
    assert not (tmp_path / "reward" / "run" / "metrics.jsonl").exists()
    assert run(settings(base, tmp_path / "one.jsonl", steps=2), tmp_path / "last", quiet=True).kind == "reward"


def test_two_runs_are_bit_identical_and_an_interrupted_one_too(tmp_path: Path, base: Path, data: Path) -> None:
    first = run(settings(base, data, steps=12), tmp_path / "first", quiet=True)
    with pytest.raises(SystemExit):
        run(settings(base, data, steps=12, save_every=5, stop_after=7), tmp_path / "second", quiet=True)
    assert not (tmp_path / "second" / "manifest.json").exists()
    second = run(settings(base, data, steps=12, save_every=5), tmp_path / "second", quiet=True)
    assert first.files == second.files
    assert read_scale(tmp_path / "first") == read_scale(tmp_path / "second")


def test_a_finished_run_is_left_as_it_is(tmp_path: Path, base: Path, data: Path) -> None:
    first = run(settings(base, data, steps=2), tmp_path / "reward", quiet=True)
    again = run(settings(base, data, steps=2), tmp_path / "reward", quiet=True)
    assert first == again


def test_the_policy_below_is_not_changed(tmp_path: Path, base: Path, data: Path) -> None:
    before = (base / "model.safetensors").read_bytes()
    run(settings(base, data, steps=2), tmp_path / "reward", quiet=True)
    assert (base / "model.safetensors").read_bytes() == before


def test_a_reward_is_no_base_and_the_base_must_be_given(tmp_path: Path, base: Path, data: Path) -> None:
    run(settings(base, data, steps=1), tmp_path / "reward", quiet=True)
    with pytest.raises(ArtifactError, match=r"holds a reward .* a policy is needed"):
        run(settings(tmp_path / "reward", data), tmp_path / "again", quiet=True)
    with pytest.raises(ConfigError, match="--base is missing"):
        run(RewardConfig(), tmp_path / "again", quiet=True)
    assert not (tmp_path / "again").exists()


def test_data_that_would_mostly_be_dropped_stops_before_anything_is_written(tmp_path: Path, base: Path) -> None:
    path = tmp_path / "long.jsonl"
    rows = [{"prompt": f"{n}", "chosen": "a" * 99, "rejected": "b"} for n in range(9)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = settings(base, path)
    config = config.model_copy(update={"data": config.data.model_copy(update={"long": "drop"})})
    with pytest.raises(DataError, match="too_long"):
        run(config, tmp_path / "reward", quiet=True)
    assert not (tmp_path / "reward").exists()


def test_scores_of_given_answers_and_of_files(tmp_path: Path, base: Path, data: Path) -> None:
    run(settings(base, data, steps=2), tmp_path / "reward", quiet=True)
    scorer = load_scorer(tmp_path / "reward")
    given = list(score_conversations(scorer, answers_to("5", ["y", "n"])))
    assert [line["answer"] for line in given] == ["y", "n"]
    row = scored_row([Message(role="user", content="5")], "y", scorer.tokenizer)
    assert given[0]["raw"] == pytest.approx(float(score_rows(scorer.model, [row], pad_id=0)), abs=1e-6)
    assert given[0]["reward"] == pytest.approx(float(scorer.score([row])), abs=1e-5)
    pairs = list(score_conversations(scorer, conversations_in(data)))
    assert len(pairs) == 80 and [line["side"] for line in pairs[:2]] == ["chosen", "rejected"]
    chats = tmp_path / "chats.jsonl"
    chats.write_text('{"prompt": "5", "completion": "y"}\n', encoding="utf-8")
    (line,) = score_conversations(scorer, conversations_in(chats))
    assert line["reward"] == pytest.approx(given[0]["reward"], abs=1e-5)


@pytest.mark.parametrize("name", sorted(REAL))
def test_real_preferences_run_through(tmp_path: Path, base: Path, name: str) -> None:
    if not REAL[name].exists():
        pytest.skip(f"{REAL[name].name} is not here")
    manifest = run(settings(base, REAL[name], steps=2, eval_every=2), tmp_path / "reward", quiet=True)
    assert manifest.counts["pairs"] > 800
    assert 0 <= manifest.metrics["val_accuracy_low"] <= manifest.metrics["val_accuracy_high"] <= 1
    assert any(name.startswith("dropped_") for name in manifest.counts)
