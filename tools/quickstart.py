"""The whole line, from text to an aligned model, through the stages' own commands.

    uv run tools/quickstart.py                     under ten minutes on two CPU cores: no download
    uv run tools/quickstart.py --fast              smaller, sooner and worse: to see that everything works
    uv run tools/quickstart.py --data my-texts/    pretrain on your own text instead of Python's standard library

It ends with a table here, and in --out with report.html for people and report.json for programs. Give the same command
again after an interruption: it goes on where it stopped, and does nothing again that is complete.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

import figures
import report
from line import REPORT, ROOT, Job, Line, Step, StepError, explain, from_root, job
from llmcore.errors import LLMError

RECORDS = ("chats", "preferences", "prompts")
QUESTIONS = Path("configs/data/quickstart.toml")
HELD_OUT = 0.02


def main() -> None:
    """Run every step, then write the report."""
    options = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.chdir(ROOT)
    try:
        line = Line(options.out, **facts(options))
        failed = line.run(plan(options), keep_going=options.keep_going)
        line.record |= {
            "figures": figures.collect(options.out),
            "samples": figures.samples(options.out),
            "family": figures.family_tree(options.out),
            "machine": figures.machine(),
        }
        line.save()
        page = report.write(options.out)
    except StepError as error:
        sys.exit(explain(error))
    except LLMError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    console = Console(highlight=False)
    console.print("\n", report.table(line.record))
    console.print(f"\n[bold]{page}[/bold] shows all of it; {options.out / REPORT} holds the figures")
    sys.exit(failed)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", metavar="PATH", help="text to pretrain on: a file, or a folder of .txt .md .py .jsonl …"
    )
    parser.add_argument("--out", metavar="DIR", help="runs/quickstart, or runs/quickstart-fast with --fast")
    parser.add_argument(
        "--fast", action="store_true", help="a smaller model and fewer steps: to see that everything works"
    )
    parser.add_argument("--keep-going", action="store_true", help="after a step failed, do what can still be done")
    options = parser.parse_args()
    if options.data is not None:
        options.data = from_root(options.data)
        if not (ROOT / options.data).exists():
            parser.error(f"--data {str(options.data)!r}: no such file or folder")
    options.out = from_root(options.out or ROOT / "runs" / ("quickstart-fast" if options.fast else "quickstart"))
    return options


def facts(options: argparse.Namespace) -> dict[str, object]:
    """What the report says about the run as a whole."""
    return {
        "fast": options.fast,
        "text": f"the text in {options.data.name}" if options.data else "the source of Python's standard library",
        "rewards": rewards(options.out),
    }


def rewards(out: Path) -> dict[str, str]:
    """What each algorithm is paid for; a term with weight 0 is only watched."""
    return {"ppo": f"0.5*{out / 'reward'} + literal", "grpo": f"literal + 0*{out / 'reward'}"}


def plan(options: argparse.Namespace) -> list[Step]:
    """Every step, in the commands that a person would give."""
    out: Path = options.out
    data = {kind: out / "data" / kind for kind in ("tokens", *RECORDS)}
    base, sft, reward, ppo, grpo = (out / name for name in figures.STAGES)
    paid = rewards(out)
    size = "quickstart-fast" if options.fast else "quickstart"
    asked = "200" if options.fast else "500"

    def train(words: str, settings: str, target: Path, *more: object, reads: Sequence[Path]) -> Job:
        file = Path("configs") / f"{settings}.toml"
        return job(target.name, words, file, *more, "--out", target, out=target, reads=reads, files=[file])

    def measure(name: str, words: str, *more: object, reads: Sequence[Path]) -> Job:
        return job(f"eval {name}", words, *more, "--json", out=out / "eval" / f"{name}.json", reads=reads)

    text = [options.data] if options.data else []
    make_data = [
        job(
            "tokens", "llmdata tokens", *text, f"valid_fraction={HELD_OUT}", "--out", data["tokens"],
            out=data["tokens"], always=bool(text),
        ),
        *(
            job(kind, "llmdata records", QUESTIONS, "--kind", kind, "--out", data[kind],
                out=data[kind], files=[QUESTIONS])
            for kind in RECORDS
        ),
    ]  # fmt: skip
    pretrain = train("llmpretrain run", f"pretrain/{size}", base, "--data", data["tokens"], reads=[data["tokens"]])
    tune = train("llmsft run", f"sft/{size}", sft, "--base", base, "--data", data["chats"], reads=[base, data["chats"]])
    judge = train(
        "llmreward run", f"reward/{size}", reward, "--base", sft, "--data", data["preferences"],
        reads=[sft, data["preferences"]],
    )  # fmt: skip
    improve = {
        target.name: train(
            f"llmrl {target.name}", f"rl/{target.name}-{size}", target, "--policy", sft, "--reward", paid[target.name],
            "--prompts", data["prompts"], reads=[sft, reward, data["prompts"]],
        )
        for target in (ppo, grpo)
    }  # fmt: skip
    measure_each = [
        measure("pretrain", "llmpretrain eval", base, "--data", data["tokens"], reads=[base, data["tokens"]]),
        measure(
            "sft", "llmsft eval", base, sft, "--data", data["chats"], "--count", asked, reads=[base, sft, data["chats"]]
        ),
        measure("reward", "llmreward eval", reward, "--data", data["preferences"], reads=[reward, data["preferences"]]),
        job(
            "rulers", "python tools/rulers.py", data["tokens"], out=out / "eval" / "rulers.json", reads=[data["tokens"]]
        ),
    ]
    measure_policies = measure(
        "rl", "llmrl eval", sft, base, ppo, grpo, "--reward", f"literal + 0*{reward}", "--prompts", data["prompts"],
        "--count", asked, "--answers", out / "eval" / "answers.jsonl",
        reads=[sft, base, ppo, grpo, reward, data["prompts"]],
    )  # fmt: skip
    return [
        Step("data", "data: text, chats, preferences, prompts", tuple(make_data), together=True),
        Step("pretrain", "pretraining: tokens to a base model", (pretrain,)),
        Step("sft", "supervised fine-tuning: chats to an assistant", (tune,)),
        Step("reward", "reward model: preferences to a score", (judge,)),
        Step("ppo", "PPO: the policy learns from a learned reward", (improve["ppo"],)),
        Step("grpo", "GRPO: the policy learns from a rule that checks answers", (improve["grpo"],)),
        Step("measure", "evaluation: unseen text, questions and pairs", tuple(measure_each), together=True),
        Step("policies", "comparison: every policy answers the same unseen prompts", (measure_policies,)),
    ]


if __name__ == "__main__":
    main()
