"""What tools/results.py measured, as Markdown tables and one curve: written between two marks of a page."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from figures import clock, read_json, share
from llmcore.charts import Series, line_chart
from llmcore.errors import DataError
from llmcore.runs.plot import svg_page
from llmcore.storage import write_durably
from llmcore.train.metrics import read_metrics

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
RULE, SAMPLED, GREEDY = "rewards/literal", "sampled/rewards/literal", "greedy/rewards/literal"
CURVE = "overoptimisation.svg"
CURVE_ROWS = 9

Scores = Mapping[str, Any]


def write(out: Path, record: Scores, *, page: Path) -> Path:
    """Put the figures of the folder `out` between the marks of a page; a new page has nothing but these."""
    text = page.read_text(encoding="utf-8") if page.exists() else f"{BEGIN}\n{END}\n"
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise DataError(f"{str(page)!r} has no line {BEGIN} with {END} below it", hint="add both, or name a new file")
    parts = [*overview(record), *fine_tuning(out, record), *rewards(out, record)]
    parts += [line for topic in ("grpo", "ppo") for line in policies(out, record, topic)]
    page.parent.mkdir(parents=True, exist_ok=True)
    parts += overoptimisation(out, record, page.parent / CURVE)
    write_durably(page, (before + begin + "\n\n" + "\n".join(parts) + "\n\n" + end + after).encode())
    return page


def overview(record: Scores) -> Iterator[str]:
    """Where and how often."""
    machine = record["machine"]
    where = ", ".join(f"{name} {value}" for name, value in machine.items())
    legend = "Intervals in [brackets] are 95 %; ranges in (parentheses) are over seeds."
    yield f"Machine: {where}. {legend}"


def fine_tuning(out: Path, record: Scores) -> Iterator[str]:
    """Held-out loss of assistants beside their base, by data set."""
    rows, first = [], list[str]()
    for path in sorted((out / "eval").glob("sft-*.json")):
        name = path.stem.removeprefix("sft-")
        base, *tuned = (found := read_json(path)).values()
        made = [Path(folder).name for folder in found][1:]
        asked = f"{base['asked']} rows"
        right = " → ".join(percent([scores["exact_match"]["value"] for scores in found]) for found in ([base], tuned))
        loss = f"{base['loss']:.3f} → **{spread([scores['loss'] for scores in tuned], '.3f')}**"
        perplexity = f"{base['perplexity']:.1f} → {spread([scores['perplexity'] for scores in tuned], '.1f')}"
        rows.append((name, asked, loss, perplexity, right, times(out, made)))
        first += made[:1]
    if rows:
        yield "\n### SFT on `gsm8k` and `rasbt`\n"
        heads = ("data", "held out", "loss, nats per token", "perplexity", "exact match, greedy", "training")
        yield from table(heads, rows)
        data = (f"{row[0]} chats" for row in rows)
        evals = (f"eval sft-{row[0]}" for row in rows)
        yield from commands(record, "tokenizer", "tokens", "base", *data, *first, *evals)


def rewards(out: Path, record: Scores) -> Iterator[str]:
    """Held-out accuracy of reward models beside the length ruler, by data set and seed."""
    rows, first = [], list[str]()
    for name in ("hh_rlhf", "rasbt", "max"):
        found = {seed: read_json(out / "eval" / f"reward-{name}-{seed}.json") for seed in seeds(out, f"reward-{name}")}
        if found:
            values = [scores["accuracy"]["value"] for scores in found.values()]
            ruler = next(iter(found.values()))["ruler"]
            each = ", ".join(share(scores["accuracy"]) for scores in found.values())
            errors = spread([scores["calibration_error"] for scores in found.values()], ".3f")
            took = times(out, [f"reward-{name}-{seed}" for seed in found])
            best = 100 * max(ruler["value"], 1 - ruler["value"])
            rule = f"{best:.1f}\u00a0% (longer wins: {share(ruler)})"
            rows.append((name, f"{ruler['cases']}", f"**{percent(values)}**", each, rule, errors, took))
            first.append(f"reward-{name}-{min(found)}")
    if rows:
        yield "\n### Reward models\n"
        heads = ("data", "held-out pairs", "accuracy", "each seed", "by length alone", "ECE", "training")
        yield from table(heads, rows)
        data = (f"{row[0]} preferences" for row in rows)
        yield from commands(record, *data, *first, *(f"eval {name}" for name in first[:1]))


def policies(out: Path, record: Scores, topic: str) -> Iterator[str]:
    """The rule on held-out questions, before and after, by seed."""
    rows, pairs = [], list[tuple[Scores, Scores]]()
    found = seeds(out, topic)
    for seed in found:
        before, after = read_json(out / "eval" / f"{topic}-{seed}.json").values()
        pairs.append((before, after))
        took = times(out, [f"sft-max-{seed}"]), times(out, [f"{topic}-{seed}"])
        cells = [share(scores[name]) for name in (SAMPLED, GREEDY) for scores in (before, after)]
        rows.append((str(seed), *cells, *learned(before, after), f"{after['sampled/kl']['value']:.2f}", *took))
    if not rows:
        return
    means = [percent([pair[side][name]["value"] for pair in pairs]) for name in (SAMPLED, GREEDY) for side in (0, 1)]
    scores = learned_mean(pairs)
    kls = spread([after["sampled/kl"]["value"] for _, after in pairs], ".2f")
    rows.append(("mean", *(f"**{value}**" for value in means), *scores, kls, "", ""))
    yield f"\n### {topic.upper()} on {'the rule' if topic == 'grpo' else 'a learned reward'}\n"
    heads = ["seed", "sampled, SFT", f"sampled, {topic.upper()}", "greedy, SFT", f"greedy, {topic.upper()}"]
    heads += ["learned reward, sampled"] * bool(scores)
    yield from table((*heads, "KL, nats", "SFT", topic.upper()), rows)
    first = found[0]
    made = (f"sft-max-{first}", f"{topic}-{first}", f"eval {topic}-{first}")
    yield from commands(record, "max chats", "max prompts", *made)


def learned(before: Scores, after: Scores) -> list[str]:
    """The learned reward before and after, where there is one."""
    name = learned_name(before)
    return [f"{before[name]['value']:.2f} → {after[name]['value']:.2f}"] if name else []


def learned_mean(pairs: Sequence[tuple[Scores, Scores]]) -> list[str]:
    name = learned_name(pairs[0][0])
    if not name:
        return []
    sides = [
        spread([scores[learned_name(scores)]["value"] for scores in side], ".2f") for side in zip(*pairs, strict=True)
    ]
    return [" → ".join(sides)]


def learned_name(scores: Scores) -> str:
    """The term of a reward that is not the rule."""
    return next((key for key in scores if key.startswith("sampled/rewards/") and key != SAMPLED), "")


def overoptimisation(out: Path, record: Scores, picture: Path) -> Iterator[str]:
    """True and learned reward over KL: means over seeds at each evaluation."""
    runs = sorted(path.parent for path in out.glob("overoptimisation-*/manifest.json"))
    logs = [read_metrics(run / "run" / "metrics.jsonl") for run in runs]
    curves = [evaluations(log) for log in logs]
    if not curves or not all(curves):
        return
    steps = sorted(set.intersection(*({row["step"] for row in curve} for curve in curves)))
    at = {step: [next(row for row in curve if row["step"] == step) for curve in curves] for step in steps}
    names = {"true: share of right answers": "right", "learned: mean score, in deviations": "score"}
    lines = [
        Series(name, mean_points(at.values(), key), color)
        for (name, key), color in zip(names.items(), ("green", "amber"), strict=True)
    ]
    write_durably(picture, svg_page([line_chart(lines, x_name="KL to the policy of SFT, nats per completion")]))
    yield "\n### Over-optimisation: true and learned reward over KL\n"
    yield f"![True and learned reward over KL]({picture.name})\n"
    chosen = [steps[round(place * (len(steps) - 1) / (CURVE_ROWS - 1))] for place in range(CURVE_ROWS)]
    yield from table(
        ("step", "KL, nats", "learned reward", "right answers, sampled", "greedy"),
        [curve_row(step, at[step]) for step in dict.fromkeys(chosen)],
    )
    yield from commands(record, runs[0].name)


def seeds(out: Path, topic: str) -> list[int]:
    """The seeds of which there is an evaluation."""
    return sorted(int(path.stem.rpartition("-")[2]) for path in (out / "eval").glob(f"{topic}-[0-9]*.json"))


def evaluations(log: Sequence[Scores]) -> list[Scores]:
    """Held-out figures in the metrics of a run, behind those of its first rollout, which no update came before."""
    return [*([figures_in(log[0], "rewards/", "/mean") | {"step": 0, "kl": 0.0}] if log else []),
            *(figures_in(row, "val_rewards/", "") for row in log if row.get(f"val_{RULE}") is not None)]  # fmt: skip


def figures_in(row: Scores, prefix: str, suffix: str) -> dict[str, Any]:
    """The rule and the learned reward, which has the name of its checkpoint, in a line of metrics."""
    rule = f"{prefix}literal{suffix}"
    score = next(key for key in row if key.startswith(prefix) and key.endswith(suffix) and key != rule)
    greedy = row.get(f"val_greedy_{RULE}")
    return {"step": row["step"], "kl": row.get("val_kl"), "score": row[score], "right": row[rule], "greedy": greedy}


def mean_points(evaluations: Iterable[Sequence[Scores]], name: str) -> list[tuple[float, float]]:
    """(KL, a figure) of each evaluation, means over seeds."""
    return sorted((fmean(row["kl"] for row in rows), fmean(row[name] for row in rows)) for rows in evaluations)


def curve_row(step: int, rows: Sequence[Scores]) -> tuple[str, ...]:
    """One evaluation of all seeds as cells."""
    figures = (spread([row[name] for row in rows], ".2f") for name in ("kl", "score"))
    shares = ([row[name] for row in rows if row[name] is not None] for name in ("right", "greedy"))
    return str(step), *figures, *(percent(values) if values else "–" for values in shares)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A Markdown table."""
    for cells in (heads, ["---"] * len(heads), *rows):
        yield f"| {' | '.join(cells)} |"


def commands(record: Scores, *names: str) -> Iterator[str]:
    """The command lines of some jobs, as they were run."""
    known = [record["jobs"][name]["command"] for name in names if name in record["jobs"]]
    if known:
        yield "\n```sh"
        yield from (f"uv run {command}" for command in known)
        yield "```"


def times(out: Path, names: Sequence[str]) -> str:
    """Time of training by the clock, with its range over runs."""
    found = [
        read_metrics(path)[-1]["seconds"] for name in names if (path := out / name / "run" / "metrics.jsonl").exists()
    ]
    seconds = [float(value) for value in found if value is not None]
    if not seconds:
        return "–"
    return clock(fmean(seconds)) + (f" ({clock(min(seconds))}–{clock(max(seconds))})" if len(seconds) > 1 else "")


def spread(values: Sequence[float], form: str) -> str:
    """The mean, and the range where there are several."""
    return format(fmean(values), form) + (f" ({min(values):{form}}–{max(values):{form}})" if len(values) > 1 else "")


def percent(values: Sequence[float]) -> str:
    """The mean share in per cent, and the range where there are several."""
    low, high = 100 * min(values), 100 * max(values)
    return f"{100 * fmean(values):.1f} %" + (f" ({low:.1f}–{high:.1f})" if len(values) > 1 else "")
