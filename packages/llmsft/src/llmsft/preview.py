"""Which tokens are trained on, shown in the text as it is rendered: coloured on a terminal, ⟦marked⟧ elsewhere."""

import json as json_library
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from rich.console import Console
from rich.text import Text

from llmcore.chat import Rendered
from llmcore.generate.text import printable
from llmcore.tokenizer import Tokenizer
from llmsft.batches import Rows

OPEN, CLOSE = "⟦", "⟧"
TRAINED, CONTEXT = "bold green", "dim"


class Span(NamedTuple):
    """Neighbouring tokens that are all trained on, or all not."""

    text: str
    trained: bool


def spans_of(row: Rendered, tokenizer: Tokenizer) -> list[Span]:
    """The text of a row, control tokens included, cut where training begins and ends."""
    runs = groupby(range(len(row.ids)), lambda place: row.mask[place])
    return [
        Span(tokenizer.decode([row.ids[place] for place in places], skip_special=False), trained)
        for trained, places in runs
    ]


def marked(row: Rendered, tokenizer: Tokenizer) -> str:
    """The text of a row with what is trained on between ⟦ and ⟧."""
    return "".join(f"{OPEN}{span.text}{CLOSE}" if span.trained else span.text for span in spans_of(row, tokenizer))


def one_line(row: Rendered, tokenizer: Tokenizer, *, longest: int = 160) -> str:
    """`marked` on one line; of a long one, its end."""
    text = printable(marked(row, tokenizer).replace("\n", "↵"))
    return text if len(text) <= longest else "…" + text[-longest:]


def print_preview(rows: Rows, tokenizer: Tokenizer, *, count: int, json: bool) -> None:
    """What `llmsft preview` prints."""
    if json:
        shown = [[span._asdict() for span in spans_of(row, tokenizer)] for row in rows.rendered[:count]]
        print(json_library.dumps({"counts": rows.counts, "conversations": shown}, ensure_ascii=False))
        return
    console = Console(soft_wrap=True, highlight=False)
    show(rows.rendered, tokenizer, count=count, console=console)
    console.print(summary(rows.counts), markup=False)


def show(rows: Sequence[Rendered], tokenizer: Tokenizer, *, count: int, console: Console) -> None:
    """Print the first rows, each below a line that says how much of it is trained on."""
    for number, row in enumerate(rows[:count], 1):
        trained = sum(row.mask)
        share = f"{trained} of {len(row.ids)} tokens trained on ({trained / len(row.ids):.0%})"
        console.print(f"── conversation {number} · {share} ──", style="cyan", highlight=False)
        text = coloured(row, tokenizer) if console.is_terminal else Text(printable(marked(row, tokenizer)))
        console.print(text, soft_wrap=True)


def coloured(row: Rendered, tokenizer: Tokenizer) -> Text:
    """The text of a row for a terminal."""
    return Text.assemble(*styled(row, tokenizer))


def styled(row: Rendered, tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    for span in spans_of(row, tokenizer):
        yield printable(span.text), TRAINED if span.trained else CONTEXT


def summary(counts: dict[str, int]) -> str:
    """The data in one line: how many conversations, how much of them is trained on, what was cut and dropped."""
    trained, tokens = counts["trained tokens"], counts["tokens in rows"]
    share = f"{trained:,} of {tokens:,} tokens trained on ({trained / max(1, tokens):.0%})"
    others = [f"{count:,} {name}" for name, count in counts.items() if name.startswith(("truncated", "dropped"))]
    return " · ".join([f"{counts['rows']:,} conversations", share, *others])
