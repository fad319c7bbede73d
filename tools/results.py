"""Results on real data and on one verifiable task, over several seeds: the tables and the curve of docs/results.md.

    uv run tools/results.py --data DIR                            everything, three seeds: under an hour, two CPU cores
    uv run tools/results.py grpo ppo --seeds 0                    some of it: these need no data sets
    uv run tools/results.py --data DIR --page docs/results.md     and put what was measured into a page

The quickstart's base model is read from --base, data sets from --data (those that are not there are left out). Give the
same command again after an interruption: it goes on where it stopped, and does nothing again that is complete.
"""

import argparse
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import figures
import results_page
from line import ROOT, Job, Line, Step, StepError, explain, from_root, job
from llmcore.errors import ArtifactError, LLMError

TOPICS = ("sft", "reward", "grpo", "ppo", "overoptimisation")
HELD_OUT = "valid_fraction=0.2"


class DataSet(NamedTuple):
    """Rows that somebody else made."""

    name: str
    topic: str
    kind: str
    file: str
    settings: tuple[str, ...] = ()
    """Of their conversion."""
    asked: tuple[str, ...] = ()
    """Options of the evaluation."""


DATA_SETS = (
    DataSet("gsm8k", "sft", "chats", "gsm8k/train.jsonl", asked=("--count", "100", "--max-new-tokens", "160")),
    DataSet("rasbt", "sft", "chats", "rasbt/instruction-data.json", (HELD_OUT,)),
    DataSet("hh_rlhf", "reward", "preferences", "hh_rlhf/harmless-base/test.head.jsonl.gz", (HELD_OUT,)),
    DataSet("rasbt", "reward", "preferences", "rasbt/instruction-data-with-preference.json", (HELD_OUT,)),
)
RL_SETTINGS = {"grpo": "rl/grpo-max", "ppo": "rl/ppo-max", "overoptimisation": "rl/ppo-overoptimisation"}
NOVELS = "english_novels/small_10mb"


def main() -> None:
    """Run every command, then write the page."""
    options = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.chdir(ROOT)
    try:
        line = Line(options.out, machine=figures.machine())
        failed = line.run(plan(options), keep_going=options.keep_going)
        line.save()
        page = results_page.write(options.out, line.record, page=options.page)
    except StepError as error:
        sys.exit(explain(error))
    except LLMError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(page)
    sys.exit(failed)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("topics", nargs="*", metavar="TOPIC", help=f"{', '.join(TOPICS)}; all if none is named")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED", help="0 1 2")
    parser.add_argument("--out", default="runs/results", metavar="DIR", help="runs/results")
    parser.add_argument("--data", metavar="DIR", help="the folder of the data sets, for sft and reward")
    parser.add_argument(
        "--base", default="runs/quickstart/pretrain", metavar="DIR", help="the quickstart's base, for grpo and ppo"
    )
    parser.add_argument("--page", metavar="FILE", help="a page to put the figures into; DIR/results.md if absent")
    parser.add_argument("--keep-going", action="store_true", help="after a command failed, do what can still be done")
    options = parser.parse_args()
    for topic in options.topics:
        if topic not in TOPICS:
            parser.error(f"{topic!r} is no topic: choose from {', '.join(TOPICS)}")
    options.topics = options.topics or TOPICS
    for name in ("out", "base"):
        setattr(options, name, from_root(getattr(options, name)))
    if options.data is None and {"sft", "reward"} & set(options.topics):
        parser.error("sft and reward need --data, the folder of the data sets; grpo, ppo and overoptimisation do not")
    options.data = Path(os.path.relpath(options.data or ROOT, ROOT))
    options.page = from_root(options.page or options.out / "results.md")
    return options


def plan(options: argparse.Namespace) -> list[Step]:
    """Every command, in an order in which each finds what it reads."""
    sets = list(present(options))
    steps = on_real_data(options, sets) if sets else []
    aligned = [topic for topic in options.topics if topic in ("grpo", "ppo", "overoptimisation")]
    return [*steps, *(on_one_task(options, aligned) if aligned else [])]


def present(options: argparse.Namespace) -> Iterator[DataSet]:
    """The data sets of the chosen topics that are there; of others, say that they are not."""
    wanted = [data for data in DATA_SETS if data.topic in options.topics]
    if wanted and not (options.data / NOVELS).exists():
        print(f"{options.data / NOVELS} is not there: no base model for real data, so it is left out", file=sys.stderr)
        return
    for data in wanted:
        if (options.data / data.file).exists():
            yield data
        else:
            print(f"{options.data / data.file} is not there: {data.topic} on {data.name} is left out", file=sys.stderr)


def on_real_data(options: argparse.Namespace, sets: Sequence[DataSet]) -> list[Step]:
    """A base of novels; from it an assistant or a reward model for each data set and seed, and their evaluations."""
    out: Path = options.out
    tokenizer, tokens, base = (out / name for name in ("tokenizer", "tokens", "base"))
    novels = options.data / NOVELS
    rows = {data: out / "data" / f"{data.name}-{data.kind}" for data in sets}
    settings = Path("configs/pretrain/novels.toml")
    make = [
        job(f"{data.name} {data.kind}", "llmdata records", options.data / data.file, *data.settings,
            "--kind", data.kind, "--out", rows[data], out=rows[data], files=[options.data / data.file])
        for data in sets
    ]  # fmt: skip
    text = [
        job("tokenizer", "llmdata tokenizer", novels, "vocab_size=2048", "--out", tokenizer, out=tokenizer),
        job("tokens", "llmdata tokens", novels, "--tokenizer", tokenizer, "--out", tokens, out=tokens,
            reads=[tokenizer]),
    ]  # fmt: skip
    pretrain = job(
        "base", "llmpretrain run", settings, "--data", tokens, "--out", base, out=base, reads=[tokens], files=[settings]
    )
    tuned = {(data, seed): out / f"{data.topic}-{data.name}-{seed}" for data in sets for seed in options.seeds}
    train = [
        train_job(f"llm{data.topic} run", f"{data.topic}/{data.name}", target, seed,
                  {"--base": base, "--data": rows[data]})
        for (data, seed), target in tuned.items()
    ]  # fmt: skip
    return [
        Step("text", "pieces of words, and novels in them", tuple(text)),
        Step("data", "data sets as records", tuple(make), together=True),
        Step("base", "a base model of novels", (pretrain,)),
        Step("real", "fine-tuning and reward models on real data", tuple(train), together=True),
        Step("judge", "evaluation on held-out rows", tuple(judged(options, rows, base)), together=True),
    ]


def judged(options: argparse.Namespace, rows: dict[DataSet, Path], base: Path) -> Iterator[Job]:
    """The evaluations: assistants of all seeds beside their base, each reward model alone."""
    for data, folder in rows.items():
        made = [options.out / f"{data.topic}-{data.name}-{seed}" for seed in options.seeds]
        if data.topic == "sft":
            yield measure(options, f"sft-{data.name}", "llmsft eval", base, *made, "--data", folder, *data.asked,
                          reads=[base, *made, folder])  # fmt: skip
        else:
            for reward in made:
                yield measure(options, reward.name, "llmreward eval", reward, "--data", folder, reads=[reward, folder])


def on_one_task(options: argparse.Namespace, topics: Sequence[str]) -> list[Step]:
    """One kind of question: fine-tuning with slips, a reward model, and what GRPO and PPO make of them, by seed."""
    out: Path = options.out
    if not (options.base / "manifest.json").exists():
        raise ArtifactError(f"there is no base model in {str(options.base)!r}", hint="run tools/quickstart.py first")
    questions = Path("configs/data/max.toml")
    rows = {kind: out / "data" / f"max-{kind}" for kind in ("chats", "preferences", "prompts")}
    make = [
        job(
            f"max {kind}",
            "llmdata records",
            questions,
            "--kind",
            kind,
            "--out",
            folder,
            out=folder,
            files=[questions],
        )
        for kind, folder in rows.items()
    ]
    found = [for_seed(options, topics, seed, rows) for seed in options.seeds]
    titles = {
        "tune": "fine-tuning, slips included",
        "score": "reward models",
        "improve": "GRPO and PPO",
        "compare": "comparison",
    }
    steps = [
        Step(name, title, tuple(job for jobs in found for job in jobs[name]), True) for name, title in titles.items()
    ]
    return [
        Step("questions", "one kind of question", tuple(make), together=True),
        *(step for step in steps if step.jobs),
    ]


def for_seed(
    options: argparse.Namespace, topics: Sequence[str], seed: int, rows: Mapping[str, Path]
) -> dict[str, list[Job]]:
    """What one seed fine-tunes, scores with, improves by, and compares."""
    sft, reward = options.out / f"sft-max-{seed}", options.out / f"reward-max-{seed}"
    jobs: dict[str, list[Job]] = {"tune": [], "score": [], "improve": [], "compare": []}
    jobs["tune"].append(
        train_job("llmsft run", "sft/max", sft, seed, {"--base": options.base, "--data": rows["chats"]})
    )
    if {"ppo", "overoptimisation"} & set(topics):
        pairs = rows["preferences"]
        jobs["score"].append(train_job("llmreward run", "reward/max", reward, seed, {"--base": sft, "--data": pairs}))
        judged = ("llmreward eval", reward, "--data", pairs)
        jobs["compare"].append(measure(options, reward.name, *judged, reads=[reward, pairs]))
    for topic in topics:
        target = options.out / f"{topic}-{seed}"
        algorithm, paid = ("grpo", "literal") if topic == "grpo" else ("ppo", f"{reward} + 0*literal")
        read = [] if topic == "grpo" else [reward]
        given = {"--policy": sft, "--reward": paid, "--prompts": rows["prompts"]}
        jobs["improve"].append(train_job(f"llmrl {algorithm}", RL_SETTINGS[topic], target, seed, given, read))
        if topic != "overoptimisation":  # the metrics of which are the curve
            asked = (
                "--reward",
                paid,
                "--prompts",
                rows["prompts"],
                "--count",
                400,
                "--max-new-tokens",
                8,
                "--seed",
                seed,
            )
            read = [sft, target, rows["prompts"], *read]
            jobs["compare"].append(measure(options, target.name, "llmrl eval", sft, target, *asked, reads=read))
    return jobs


def train_job(words: str, settings: str, target: Path, seed: int, given: Mapping[str, object],
              reads: Sequence[Path] = ()) -> Job:  # fmt: skip
    """A training command with a seed; what it is given and lies in a folder is what it reads."""
    file = Path("configs") / f"{settings}.toml"
    options = [word for pair in given.items() for word in pair]
    inputs = [value for value in given.values() if isinstance(value, Path)]
    return job(
        target.name, words, file, f"train.seed={seed}", *options, "--out", target,
        out=target, reads=[*inputs, *reads], files=[file],
    )  # fmt: skip


def measure(options: argparse.Namespace, name: str, words: str, *more: object, reads: Sequence[Path]) -> Job:
    """An evaluation, printed as JSON."""
    return job(f"eval {name}", words, *more, "--json", out=options.out / "eval" / f"{name}.json", reads=reads)


if __name__ == "__main__":
    main()
