"""Policies on the same held-out conversations and tasks, each beside the first: what `llmsft eval` does."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmcore.checkpoint import Checkpoint, load_checkpoint
from llmcore.evaluate import benchmark
from llmcore.records import Chat, load_records
from llmcore.train.device import place, resolve
from llmsft import overlap
from llmsft.answers import answerable
from llmsft.evaluate import Asked, ask, figures, gains

SHARES = ("exact_match", "sampled", "greedy", "pass@")


def compare(
    folders: Sequence[Path],
    *,
    data: Path | None,
    count: int,
    samples: int,
    max_new_tokens: int,
    tasks: Sequence[Path] = (),
    task_count: int | None = None,
    chat: bool = False,
    device: str = "auto",
) -> dict[str, dict[str, Any]]:
    """By checkpoint: the figures of conversations (where there is `data`), of tasks, and the gains over the first."""
    given = benchmark.read_tasks(tasks, count=task_count, chat=chat)
    chats = answerable(load_records(data, Chat, "valid")[0][:count]) if data else []
    if chats and not overlap.installed():
        print("BLEU and ROUGE are left out: pip install 'llmsft[text]' brings what computes them", file=sys.stderr)
    first: Asked | None = None
    first_results: list[benchmark.Result] | None = None
    found: dict[str, dict[str, Any]] = {}
    for folder in folders:
        policy = load_checkpoint(folder)
        place(policy.model, resolve(device, "fp32"))
        entry: dict[str, Any] = {}
        if chats:
            asked = questioned(policy, folder, chats, samples=samples, max_new_tokens=max_new_tokens)
            entry |= figures(asked) | (gains(first, asked) if first else {})
            first = first or asked
        if given:
            results = benchmark.score_tasks(policy, given, chat=chat)
            entry["tasks"] = benchmark.report_all(results, first=first_results)
            first_results = first_results or results
        found[str(folder)] = entry
    return found


def questioned(policy: Checkpoint, folder: Path, chats: Sequence[Chat], *, samples: int, max_new_tokens: int) -> Asked:
    """What one policy makes of the conversations, with a bar on stderr."""
    with benchmark.progress(str(folder), len(chats) * (samples + 1)) as tell:
        return ask(policy.model, chats, policy.tokenizer, samples=samples, max_new_tokens=max_new_tokens, tell=tell)


def report_lines(results: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """The comparison for a terminal."""
    signatures: dict[str, str] = {}
    for number, (folder, found) in enumerate(results.items()):
        if "asked" in found:
            yield (
                f"{folder}: loss {found['loss']:.4f} nats/token (perplexity {found['perplexity']:.2f}) · right answers "
                f"sampled {told(found, 'sampled')}, greedy {told(found, 'greedy')} of {found['asked']}"
            )
            names = [name for name in found if name == "exact_match" or name.startswith(("bleu", "rouge", "pass@"))]
            yield "  " + " · ".join(f"{name.replace('_', ' ')} {told(found, name)}" for name in names)
            differences = [name for name in found if name.startswith("gain/")]
            if number and differences:
                yield f"  against {next(iter(results))}:"
                yield "  " + " · ".join(f"{name[5:].replace('_', ' ')} {told(found, name)}" for name in differences)
        else:
            yield f"{folder}:"
        yield from (f"  {line}" for line in benchmark.report_lines(found.get("tasks", {})))
        signatures |= found.get("signatures", {})
    yield from signatures.values()


def told(found: Mapping[str, Any], name: str) -> str:
    """A figure with its interval: shares in percent, differences with their sign."""
    sign = "+" if name.startswith("gain/") else ""
    digits = ".1%" if name.removeprefix("gain/").startswith(SHARES) else ".3f" if "bleu" not in name else ".1f"
    shown, low, high = ("?" if number is None else format(number, sign + digits) for number in found[name].values())
    return f"{shown} [{low}, {high}]"
