"""What a person sees of the mask before training."""

import io
import json

import pytest
from rich.console import Console

from llmcore.records import Chat, Message
from llmcore.tokenizer import Tokenizer
from llmsft.batches import Rows, numbered_rows
from llmsft.preview import marked, one_line, print_preview, show, spans_of, summary

TOKENIZER = Tokenizer.byte_level()


def rows() -> Rows:
    turns = ("1 + 1", "2", "und 'é'?\nja", "'ok'")
    roles = ("user", "assistant")
    messages = tuple(Message(role=roles[i % 2], content=turn) for i, turn in enumerate(turns))
    return numbered_rows([Chat(messages=messages)], TOKENIZER, max_length=128)


def test_the_whole_text_is_there_and_marked_where_it_is_trained_on() -> None:
    row = rows().rendered[0]
    end = TOKENIZER.special.end_of_turn
    text = marked(row, TOKENIZER)
    assert f"⟦2{end}⟧" in text and f"⟦'ok'{end}⟧" in text and "und 'é'?\nja" in text
    whole = "".join(span.text for span in spans_of(row, TOKENIZER))
    assert whole == TOKENIZER.decode(row.ids, skip_special=False) == text.replace("⟦", "").replace("⟧", "")
    line = one_line(row, TOKENIZER, longest=40)
    assert len(line) == 41 and line.endswith("⟧↵") and "\n" not in one_line(row, TOKENIZER)


def test_a_terminal_gets_colours_and_a_file_marks() -> None:
    shown = []
    for terminal in (True, False):
        file = io.StringIO()
        console = Console(file=file, force_terminal=terminal, width=200, color_system="standard" if terminal else None)
        show(rows().rendered, TOKENIZER, count=3, console=console)
        shown.append(file.getvalue())
    assert "\x1b[1;32m2" in shown[0] and "⟦" not in shown[0]
    assert "\x1b" not in shown[1] and "⟦2" in shown[1] and "tokens trained on" in shown[1]


def test_the_summary_says_the_share_and_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    counts = {"rows": 5, "tokens in rows": 200, "trained tokens": 50, "dropped: no assistant token": 2}
    assert summary(counts) == ("5 conversations · 50 of 200 tokens trained on (25%) · 2 dropped: no assistant token")
    print_preview(rows(), TOKENIZER, count=1, json=True)
    told = json.loads(capsys.readouterr().out)
    assert [span["trained"] for span in told["conversations"][0]] == [False, True, False, True, False]
