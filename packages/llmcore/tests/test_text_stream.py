"""Text while it arrives: whole characters only, and nothing of a stop string."""

import random

import pytest

from llmcore.generate.stops import StopStrings, cut_at_stop, held_back
from llmcore.generate.text import printable, stream_text
from llmcore.tokenizer import Tokenizer

BYTES = Tokenizer.byte_level()
TEXTS = ["plain", "žluťoučký kůň", "日本語のテキスト", "👩‍👩‍👧 family", "a\u0301e\nnew line", ""]


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return Tokenizer.train_bpe([text * 3 for text in TEXTS if text], 300)


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_valid_and_make_the_text(text: str, bpe: Tokenizer) -> None:
    for tokenizer in (BYTES, bpe):
        pieces = list(stream_text(tokenizer.encode(text), tokenizer))
        assert "".join(pieces) == text
        assert all(piece and "\ufffd" not in piece for piece in pieces)


def test_a_character_waits_for_its_last_byte() -> None:
    pieces = stream_text(iter("aé".encode()), BYTES)
    assert [next(pieces), next(pieces)] == ["a", "é"]


def test_broken_bytes_become_the_replacement_character_as_in_decode() -> None:
    random_bytes = random.Random(0)
    for _ in range(50):
        ids = [random_bytes.randrange(256) for _ in range(20)]
        assert "".join(stream_text(ids, BYTES)) == BYTES.decode(ids)


def test_control_tokens_have_no_text() -> None:
    assert "".join(stream_text([104, 105, BYTES.end_of_turn_id], BYTES)) == "hi"


@pytest.mark.parametrize("stop", [["END"], ["END", "E", "D!"], ["aab"], ["\n\n"], ["é"]])
def test_streamed_text_ends_before_the_stop_string(stop: list[str]) -> None:
    for text in ["one END two", "aaab END", "x\n\ny", "café END!", "no stop here EN", "D! E"]:
        assert "".join(stream_text(BYTES.encode(text), BYTES, stop=stop)) == cut_at_stop(text, stop)


def test_what_may_become_a_stop_string_waits() -> None:
    assert held_back("some EN", ["END"]) == 2
    assert held_back("some", ["END"]) == 0
    assert list(stream_text(BYTES.encode("EN!"), BYTES, stop=["END"])) == ["EN!"]


def test_a_stop_string_is_seen_by_the_token_that_completes_it() -> None:
    for stop, text in [("END", "an END."), ("é", "caffé"), ("x", "x"), ("aab", "aaab")]:
        watcher = StopStrings(BYTES, [stop])
        seen = [watcher.complete(token) for token in BYTES.encode(text)]
        end = len(text[: text.index(stop) + len(stop)].encode())
        assert seen.index(True) == end - 1


def test_control_characters_do_not_reach_a_terminal() -> None:
    assert printable("a\x1b[2Jb\x07\x9bc\n\td\x7f") == "a[2Jbc\n\td"
