"""The report of a quickstart: `report.json` and the run folders to one self-contained page, and to a table.

uv run tools/report.py runs/quickstart        write its report.html again
"""

import math
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich.table import Table

import figures
from familytree import draw_family
from line import read_record
from llmcore.charts import Interval, Points, Ruler, Series, interval_chart, line_chart
from llmcore.errors import LLMError
from llmcore.storage import write_durably

NAME = "report.html"
TONES = {"pretrain": "gray", "sft": "blue", "reward": "amber", "ppo": "violet", "grpo": "green"}
NAMES = {"pretrain": "base", "sft": "SFT", "reward": "reward", "ppo": "PPO", "grpo": "GRPO"}
RULERS = ("unigram", "gzip -9", "xz -9")
LONGEST = 70
"""Characters of an answer that are shown."""

Record = Mapping[str, Any]
Rows = Sequence[Mapping[str, Any]]


def write(out: Path) -> Path:
    """Write `report.html` from what lies in the folder of a quickstart."""
    page = build_page(read_record(out), figures.curves(out), out)
    write_durably(out / NAME, page.encode())
    return out / NAME


def table(record: Record) -> Table:
    """What was promised and what was measured, for a terminal."""
    rows = Table(title="what the line learned", title_justify="left", title_style="bold", header_style="dim")
    for column in ("", "on data that it never saw", "measured", "beside"):
        rows.add_column(column, no_wrap=column == "measured")
    for claim in figures.claims(record):
        mark = "[green]✓[/green]" if claim.kept else "[red]✗[/red]"
        rows.add_row(mark, claim.what, f"[bold]{plain(claim.value)}[/bold]", plain(claim.beside))
    return rows


def build_page(record: Record, curves: Mapping[str, Rows], out: Path) -> str:
    """The whole page."""
    style = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
    parts = (
        header(record),
        promises(record),
        answers_section(record),
        samples_section(record["samples"]),
        text_section(record["figures"], curves),
        reward_section(record["figures"], curves),
        policy_section("ppo", record, curves),
        policy_section("grpo", record, curves),
        cost_section(record),
        family_section(record["family"]),
        machine_section(record),
        next_section(out),
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>From text to an aligned model</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )


def header(record: Record) -> str:
    """The title and the key figures."""
    tiles = "".join(tile(*facts) for facts in key_figures(record))
    return (
        "<header><h1>From text to an aligned model</h1>"
        f'<p class="lead">A language model was pretrained on {escape(record["text"])}, taught to answer, judged by a '
        "reward model that it became, and improved by PPO and by GRPO. The task: "
        "<em>be a Python prompt</em> — read a small expression, write its value. Three in ten of the demonstrations "
        "have a slip, as people's have; fine-tuning imitates those too, and reinforcement learning mends them. "
        "Every figure is on data that no stage trained on.</p>"
        f'<div class="tiles">{tiles}</div></header>'
    )


def key_figures(record: Record) -> Iterator[tuple[str, str, str, str, str]]:
    """(tone, label, value, unit, what stands beside) of each tile."""
    found = record["figures"]
    if "pretrain" in found:
        beside = " · ".join(f"{name} {found['rulers'][name]:.2f}" for name in RULERS if "rulers" in found)
        yield "gray", "Pretraining", f"{found['pretrain']['bits_per_byte']['value']:.2f}", "bits/byte", beside
    if "sft" in found:
        right, before = (found["sft"][name]["sampled"]["value"] for name in ("sft", "pretrain"))
        yield "blue", "Fine-tuning", f"{100 * right:.0f}", "% right", f"base {100 * before:.1f} %"
    if "reward" in found:
        ruler = found["reward"]["ruler"]["value"]
        beside = f"by length alone {100 * max(ruler, 1 - ruler):.0f} %"
        yield "amber", "Reward model", f"{100 * found['reward']['accuracy']['value']:.0f}", "% right", beside
    for name in ("ppo", "grpo"):
        if name in found.get("rl", {}):
            right, gain = (found["rl"][name][f"sampled/{key}"]["value"] for key in ("rewards/literal", "gain"))
            yield TONES[name], NAMES[name], f"{100 * right:.0f}", "% right", f"{100 * gain:+.1f} points over SFT"
    machine = {"accelerator": "unknown", **record["machine"]}
    beside = {"none": ", no GPU", "unknown": ""}.get(machine["accelerator"], f", {machine['accelerator']}")
    cost = f"{machine['cores']} cores{beside}"
    yield "red", "In all", figures.clock(figures.total_seconds(record)), "min", cost


def tile(tone: str, label: str, value: str, unit: str, beside: str) -> str:
    return (
        f'<div class="tile" style="--tone:var(--{tone})"><div class="label">{escape(label)}</div>'
        f'<div class="value">{escape(value)} <small>{escape(unit)}</small></div>'
        f'<div class="beside">{escape(beside)}</div></div>'
    )


def promises(record: Record) -> str:
    """Every promise, what was measured, and whether it is kept."""
    rows = "".join(
        f'<tr><td class="{"yes" if claim.kept else "no"}">{"✓" if claim.kept else "✗"}</td>'
        f'<td>{escape(claim.what)}</td><td class="figure">{escape(claim.value)}</td>'
        f'<td class="quiet">{escape(claim.beside)}</td></tr>'
        for claim in figures.claims(record)
    )
    head = "<tr><th></th><th>on data that no stage saw</th><th>measured</th><th>beside</th></tr>"
    note = "This was a <code>--fast</code> run: too short to keep them all." if record["fast"] else ""
    return section(
        "What it had to show",
        f"Intervals hold 95 %; that of a gain is taken prompt by prompt. {note}",
        f'<div class="card wide"><table>{head}{rows}</table></div>',
    )


def answers_section(record: Record) -> str:
    """Right answers of every policy, sampled and greedy, with intervals."""
    scores = record["figures"].get("rl")
    if not scores:
        return ""
    cards = []
    for way, title in (("sampled", "One sample at temperature 1"), ("greedy", "The likeliest answer (greedy)")):
        present = [name for name in figures.POLICIES if name in scores]
        rows = [interval(NAMES[name], scores[name][f"{way}/rewards/literal"], TONES[name]) for name in present]
        cards.append(card(title, interval_chart(rows)))
    return section(
        "From guessing to answering",
        "The share of held-out expressions whose value each policy gets right, checked by Python itself: "
        "<code>ast.literal_eval</code> reads the answer, and value and type must agree.",
        f'<div class="grid">{"".join(cards)}</div>',
    )


def samples_section(samples: Sequence[Mapping[str, Any]]) -> str:
    """The same prompts after every stage, side by side."""
    if not samples:
        return ""
    names = [name for name in figures.POLICIES if name in samples[0]["given"]]
    stages = "".join(
        f'<th><span class="stage" style="--tone:var(--{TONES[name]})">{NAMES[name]}</span></th>' for name in names
    )
    head = f"<tr><th>prompt</th><th>answer</th>{stages}</tr>"
    rows = "".join(
        f"<tr><td>&gt;&gt;&gt; {escape(sample['prompt'])}</td><td>{escape(sample['answer'])}</td>"
        + "".join(f"<td>{given_answer(sample['given'][name])}</td>" for name in names)
        + "</tr>"
        for sample in samples
    )
    return section(
        "The same questions after every stage",
        "One sample at temperature 1 from every policy, for prompts that were held out from every stage.",
        f'<div class="card wide"><table class="samples">{head}{rows}</table></div>',
    )


def given_answer(given: Mapping[str, Any]) -> str:
    """An answer with its mark; what a model says is shown as text, cut and without control characters."""
    words = "".join(c if c.isprintable() else "⏎" if c == "\n" else "·" for c in given["text"])
    words = words if words.strip() else f"({len(words)} spaces)"
    words = words[:LONGEST] + ("…" if len(words) > LONGEST else "")
    mark = '<span class="yes">✓</span>' if given["right"] else '<span class="no">✗</span>'
    return f'{mark} <span class="{"right" if given["right"] else "wrong"}">{escape(words)}</span>'


def text_section(found: Record, curves: Mapping[str, Rows]) -> str:
    """Bits per byte while pretraining, beside the rulers; the loss of fine-tuning."""
    rows = curves.get("pretrain", ())
    rulers = [Ruler(name, found["rulers"][name]) for name in RULERS] if "rulers" in found else []
    training = [(x, y / math.log(2)) for x, y in points(rows, "loss")]
    bits = learning_curve(training, points(rows, "val_bits_per_byte"), rulers=rulers)
    rows = curves.get("sft", ())
    loss = learning_curve(points(rows, "loss"), points(rows, "val_loss"))
    cards = card("Pretraining: bits per byte", bits) + card("Fine-tuning: nats per answer token", loss)
    return section(
        "Learning to read, learning to answer",
        "A byte-unigram model knows how often each byte occurs; gzip and xz compress the whole held-out text at once.",
        f'<div class="grid">{cards}</div>',
    )


def learning_curve(training: Points, held_out: Points, *, rulers: Sequence[Ruler] = (), percent: bool = False) -> str:
    """What is measured on each batch, faintly, and what counts."""
    lines = (Series("training", training, "gray", smooth=True), Series("held out", held_out, "blue"))
    return line_chart(lines, x_name="steps", rulers=rulers, percent=percent)


def reward_section(found: Record, curves: Mapping[str, Rows]) -> str:
    """Accuracy while the reward model learns, and whether it is as sure as it is right."""
    rows = curves.get("reward", ())
    if not rows:
        return ""
    rulers = [Ruler("longer answer wins", found["reward"]["ruler"]["value"])] if "reward" in found else []
    accuracy = learning_curve(points(rows, "accuracy"), points(rows, "val_accuracy"), rulers=rulers, percent=True)
    cards = [card("Pairs ranked right", accuracy)]
    if "reward" in found:
        by_length = [
            interval(name.replace("_", " "), share, "amber") for name, share in found["reward"]["by_length"].items()
        ]
        cards.append(card("… where the right answer is shorter, as long, longer", interval_chart(by_length)))
    return section(
        "A model that judges",
        "It began as the fine-tuned policy and learned from pairs: a right answer against a wrong one that is close.",
        f'<div class="grid">{"".join(cards)}</div>',
    )


def policy_section(name: str, record: Record, curves: Mapping[str, Rows]) -> str:
    """What a policy learned from, the truth beside it, and how far it went."""
    rows = curves.get(name, ())
    if not rows:
        return ""
    truth = Series("true reward: share right", points(rows, "rewards/literal/mean"), TONES[name], smooth=True)
    held_out = Series("held out", points(rows, "val_rewards/literal"), "blue")
    score = Series("reward model's score", points(rows, "rewards/reward/mean"), "amber", smooth=True)
    distance = Series("KL to SFT, nats an answer", points(rows, "objective/kl"), TONES[name], smooth=True)
    length = Series("tokens an answer", points(rows, "completions/mean_length"), "gray", smooth=True)
    learned = {
        "ppo": (
            "PPO",
            "Paid for the reward model's score and for the rule; a KL penalty holds it near SFT. "
            "(In a trial with the score alone, the score rose and the share of right answers did not.)",
        ),
        "grpo": ("GRPO", "Eight answers to each prompt compete; only the rule decides. The reward model watches."),
    }[name]
    cards = (
        card("True reward", line_chart([truth, held_out], x_name="steps", percent=True)),
        card("Learned reward", line_chart([score], x_name="steps")),
        card("Distance", line_chart([distance], x_name="steps")),
        card("Length", line_chart([length], x_name="steps")),
    )
    reward = f" Reward: <code>{escape(record['rewards'][name])}</code>."
    return section(learned[0], learned[1] + reward, f'<div class="grid">{"".join(cards)}</div>')


def cost_section(record: Record) -> str:
    """Where the time went."""
    tones = {"data": "red", **TONES, "measure": "ink", "policies": "soft"}
    steps = [(f"var(--{tones[name]})", step) for name, step in record["steps"].items()]
    bars = "".join(f'<div style="--tone:{tone};flex:{max(step["seconds"], 0.1):.1f}"></div>' for tone, step in steps)
    legend = "".join(
        f'<span><i style="background:{tone}"></i>{escape(step["title"].partition(":")[0])} '
        f"<b>{figures.clock(step['seconds'])}</b></span>"
        for tone, step in steps
    )
    jobs = "".join(
        f'<tr><td>{escape(name)}</td><td class="figure">{figures.clock(job["seconds"])}</td>'
        f'<td class="figure">{job["peak_bytes"] / figures.GIBIBYTE:.2f} GiB</td>'
        f"<td><code>{escape(job['command'])}</code></td></tr>"
        for name, job in record["jobs"].items()
    )
    head = "<tr><th>command</th><th>time</th><th>memory</th><th></th></tr>"
    return section(
        f"Where {figures.clock(figures.total_seconds(record))} went",
        "By the clock, all starts of a command together, loading torch included. Memory is the most of any moment.",
        f'<div class="card wide"><div class="bar">{bars}</div><div class="legend">{legend}</div>'
        f"<table>{head}{jobs}</table></div>",
    )


def family_section(members: Sequence[Mapping[str, Any]]) -> str:
    if not members:
        return ""
    return section(
        "Family tree",
        "Every artifact carries its ancestors' manifests. An id names the whole history: equal runs have equal ids.",
        f'<div class="card wide">{draw_family(members, TONES)}</div>',
    )


def machine_section(record: Record) -> str:
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in record["machine"].items())
    return section("Machine", "", f'<div class="card"><dl>{facts}</dl></div>')


def next_section(out: Path) -> str:
    """Commands to go on with."""
    where = shlex.quote(str(out))
    lines = (
        ("talk to it", f"uv run llmcore chat {where}/grpo"),
        ("eight answers to one prompt, with rewards and advantages",
         f'uv run llmrl rollout {where}/grpo --prompt "sorted([3, 1, 2])" --answer "[1, 2, 3]" --reward literal'),
        ("judge answers yourself",
         f"uv run llmreward score {where}/reward --prompt \"len('abc')\" --answer 3 --answer 4"),
        ("every curve", f"uv run tensorboard --logdir {where}"),
        ("train longer", f"uv run llmrl grpo configs/rl/grpo-quickstart.toml --policy {where}/grpo --out runs/longer "
                         "train.steps=400"),
        ("your own text", "uv run tools/quickstart.py --data my-texts/ --out runs/mine"),
    )  # fmt: skip
    text = "\n".join(f'<span class="comment"># {escape(why)}</span>\n{escape(command)}' for why, command in lines)
    return section("How to go on", "", f"<pre>{text}</pre>")


def interval(name: str, found: Mapping[str, float], tone: str) -> Interval:
    return Interval(name, found["value"], found["low"], found["high"], tone)


def plain(text: str) -> str:
    """Text in which rich sees no markup."""
    return text.replace("[", r"\[")


def section(title: str, text: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{f'<p class=quiet>{text}</p>' if text else ''}{body}</section>"


def card(title: str, body: str) -> str:
    return f'<div class="card"><h3>{escape(title)}</h3>{body}</div>'


def points(rows: Rows, name: str) -> list[tuple[float, float]]:
    """(step, value) of a figure, where it was measured."""
    return [(row["step"], row[name]) for row in rows if row.get(name) is not None]


if __name__ == "__main__":
    try:
        print(write(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart")))
    except LLMError as error:
        sys.exit(f"error: {error}")
