"""What is wrong with preferences before anything is trained on them."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from llmcore import intervals
from llmcore.intervals import Interval
from llmcore.records import Message, Preference, prompt_hash
from llmcore.tokenizer import Tokenizer
from llmreward.preferences import load_preferences

SHOWN = 3
TOLERATED = 0.1
"""How far from a coin the ruler may surely be before it counts as a flaw."""
Arrow = tuple[str, str]


class Finding(NamedTuple):
    """One kind of flaw: how often, which rows show it first, and what it means."""

    name: str
    times: int
    rows: tuple[int, ...]
    meaning: str


class Checked(NamedTuple):
    """What a check of preferences found."""

    pairs: int
    prompts: int
    findings: tuple[Finding, ...]
    chosen_longer: float
    """Share of pairs whose chosen answer is longer, in characters."""
    ruler: Interval
    """Accuracy of the ruler that the longer answer wins; equal lengths count one half."""

    @property
    def flaws(self) -> int:
        """How many flaws were found."""
        return sum(finding.times for finding in self.findings)


def check_path(path: Path, *, base: Path | None = None) -> Checked:
    """Check an artifact, a folder or a file: the rows to train on, and their overlap with those held out.

    With the policy `base`, also what is too long for its context, and what is the same once it is cut.
    """
    train, valid = load_preferences(path)
    checked = check_preferences(train.records, held_out=valid.records, dropped=train.unusable)
    return checked if base is None else checked._replace(findings=(*checked.findings, *cuts(train.records, base)))


def cuts(records: Sequence[Preference], base: Path) -> Iterator[Finding]:
    """What a model's context does to pairs."""
    from llmcore.checkpoint import ARCHITECTURE, read_architecture
    from llmreward.batches import tokenize_groups
    from llmreward.config import RewardData

    context, tokenizer = read_architecture(base / ARCHITECTURE).context, Tokenizer.load(base)
    different = [record for record in records if record.chosen != record.rejected]
    counts = tokenize_groups(different, tokenizer, data=RewardData(), context=context).counts
    for name in ("cut", "dropped_equal"):
        if counts.get(name):
            yield Finding(MEASURED[name], counts[name], (), MEANINGS[MEASURED[name]])


def check_preferences(
    records: Sequence[Preference],
    *,
    held_out: Sequence[Preference] = (),
    dropped: Mapping[str, int] | None = None,
) -> Checked:
    """Look for what makes pairs useless, contradictory or misleading; `records` without `held_out` are trained on."""
    longer = [len(record.chosen) - len(record.rejected) for record in records]
    arrows = arrows_by_prompt(records)
    rows = {
        "identical": [i for i, r in enumerate(records) if r.chosen == r.rejected],
        "same but for spaces": [i for i, r in enumerate(records) if same_words(r)],
        "empty answer": [i for i, r in enumerate(records) if not r.chosen.strip() or not r.rejected.strip()],
        "duplicate": duplicates(records),
        "contradiction": contradictions(records),
        "cycle": [arrows[prompt][1] for prompt in sorted(arrows, key=str) if has_cycle(arrows[prompt][0])],
        "negative margin": [i for i, r in enumerate(records) if r.margin is not None and r.margin < 0],
        "held-out prompt": shared_prompts(records, held_out),
    }
    count = max(len(records), 1)
    ruler = intervals.share(sum((difference > 0) + (difference == 0) / 2 for difference in longer), count)
    findings = [Finding(name, len(found), tuple(sorted(found)[:SHOWN]), MEANINGS[name]) for name, found in rows.items()]
    if records and (ruler.low > 0.5 + TOLERATED or ruler.high < 0.5 - TOLERATED):
        findings.append(Finding("length confound", 1, (), MEANINGS["length confound"]))
    for name, left_out in (dropped or {}).items():
        findings.append(Finding(name.replace("_", " "), left_out, (), LEFT_OUT.get(name, "rows that say nothing")))
    return Checked(
        pairs=len(records),
        prompts=len({record.prompt for record in records}),
        findings=tuple(finding for finding in findings if finding.times),
        chosen_longer=sum(difference > 0 for difference in longer) / count,
        ruler=ruler,
    )


MEANINGS = {
    "identical": "both answers are the same, so nothing can be learned",
    "same but for spaces": "the answers differ in white space alone",
    "empty answer": "one side says nothing",
    "duplicate": "the same pair stands earlier",
    "contradiction": "the same two answers stand elsewhere the other way round",
    "cycle": "three or more answers to one prompt beat each other in a circle (counted by prompt)",
    "negative margin": "a margin says by how much chosen is better, so it cannot be below 0",
    "held-out prompt": "the prompt is also among those that are held out",
    "length confound": "length alone tells chosen from rejected, and a model may learn no more than that",
    "too long": "longer than the context of the base: the prompt's beginning and the answers' ends are cut",
    "same once cut": "the answers differ only beyond the context of the base",
}
MEASURED = {"cut": "too long", "dropped_equal": "same once cut"}
LEFT_OUT = {
    "dropped_equal_answers": "rows of the file whose answers are the same, which the reader left out",
    "dropped_parts_early": "rows of the file whose two sides have different prompts, which the reader left out",
    "dropped_no_answer": "rows of the file without an answer, which the reader left out",
    "dropped_equal_scores": "rankings of the file whose scores are all the same, which the reader left out",
}


def same_words(record: Preference) -> bool:
    left, right = (" ".join(side.split()) for side in (record.chosen, record.rejected))
    return left == right and record.chosen != record.rejected


def duplicates(records: Sequence[Preference]) -> list[int]:
    """Rows that repeat an earlier row."""
    seen: Counter[tuple[object, ...]] = Counter()
    found = []
    for number, record in enumerate(records):
        key = (record.prompt, record.chosen, record.rejected)
        found += [number] if seen[key] else []
        seen[key] += 1
    return found


def contradictions(records: Sequence[Preference]) -> list[int]:
    """Rows whose answers stand the other way round for the same prompt."""
    said = {(record.prompt, record.chosen, record.rejected) for record in records}
    return [
        number
        for number, record in enumerate(records)
        if record.chosen != record.rejected and (record.prompt, record.rejected, record.chosen) in said
    ]


def arrows_by_prompt(records: Sequence[Preference]) -> dict[tuple[Message, ...], tuple[set[Arrow], int]]:
    """Of each prompt, (better, worse) of all its pairs, and its first row."""
    arrows: dict[tuple[Message, ...], tuple[set[Arrow], int]] = {}
    for number, record in enumerate(records):
        arrows.setdefault(record.prompt, (set(), number))[0].add((record.chosen, record.rejected))
    return arrows


def has_cycle(arrows: Iterable[Arrow]) -> bool:
    """Whether three or more answers beat each other in a circle; a contradiction of two is left out."""
    every = set(arrows)
    rest = {(better, worse) for better, worse in every if better != worse and (worse, better) not in every}
    while rest:
        beaten = {worse for _, worse in rest}
        inner = {(better, worse) for better, worse in rest if better in beaten}
        if inner == rest:
            return True
        rest = inner
    return False


def shared_prompts(records: Sequence[Preference], held_out: Sequence[Preference]) -> list[int]:
    """Rows whose prompt is also held out."""
    hidden = {prompt_hash(record) for record in held_out}
    return [number for number, record in enumerate(records) if prompt_hash(record) in hidden]


def lines(checked: Checked) -> Iterator[str]:
    """The check in words."""
    yield f"{checked.pairs:,} pairs of {checked.prompts:,} prompts"
    value, low, high = checked.ruler
    yield f"chosen is longer in {checked.chosen_longer:.1%}"
    yield f"'the longer answer wins' is right in {value:.1%} [{low:.1%}, {high:.1%}]"
    for finding in checked.findings:
        more = " …" if finding.times > len(finding.rows) else ""
        where = f" (rows {', '.join(str(row + 1) for row in finding.rows)}{more})" if finding.rows else ""
        yield f"{finding.times:,} × {finding.name}: {finding.meaning}{where}"
    if not checked.findings:
        yield "no flaws found"


def as_json(checked: Checked) -> dict[str, object]:
    """Every figure, for machines."""
    findings = [finding._asdict() for finding in checked.findings]
    return {**checked._asdict(), "ruler": checked.ruler._asdict(), "flaws": checked.flaws, "findings": findings}
