import pytest

from llmcore.chat import render_chat
from llmcore.evaluate.options import chat_rows, text_rows
from llmcore.evaluate.tasks import Item, Option
from llmcore.records import Message
from llmcore.tokenizer import SpecialTokens, Tokenizer

BYTES = Tokenizer.byte_level()


def options(*pairs: tuple[str, str]) -> Item:
    return Item(tuple(Option(*pair) for pair in pairs), 0)


@pytest.fixture(scope="module")
def merging() -> Tokenizer:
    """A tokenizer with merges across the boundaries that matter: a space and its word, `ab` and `abc`."""
    tokenizer = Tokenizer.train_bpe(["Answer: Yes Answer: No abc abc ab ab abd " * 30], 300)
    assert len(tokenizer.encode(" Yes")) == 1 and len(tokenizer.encode(" abc")) == 1
    return tokenizer


def test_a_space_before_the_boundary_belongs_to_the_word_after_it(merging: Tokenizer) -> None:
    [ended, begun] = text_rows(
        [options(("Answer: ", "Yes"), ("Answer: ", "No")), options(("Answer:", " Yes"), ("Answer:", " No"))],
        merging,
        context=99,
    )
    assert ended == begun
    row = ended.options[0]
    assert merging.decode(row.ids[row.start :]) == " Yes" and row.ids[0] == merging.bos_id


def test_a_merge_across_the_boundary_moves_it_for_all_options(merging: Tokenizer) -> None:
    """`ab` + `c` is one token: both options are scored from before it on, given the same."""
    [row] = text_rows([options((" ab", "c"), (" ab", " Yes"))], merging, context=99)
    first, second = row.options
    assert first.start == second.start == 1 and first.ids[:1] == second.ids[:1]
    assert merging.decode(first.ids) == " abc" and merging.decode(second.ids) == " ab Yes"


def test_options_with_contexts_of_their_own_are_scored_after_their_own() -> None:
    [row] = text_rows([options(("Jo", " ran"), ("Maria", " ran"))], BYTES, context=99)
    assert [one.start for one in row.options] == [3, 6]


def test_without_a_context_everything_but_the_beginning_is_scored() -> None:
    [row] = text_rows([options(("", "Hi"), ("", "Ho"))], BYTES, context=99)
    assert [(one.ids, one.start) for one in row.options] == [
        ([BYTES.bos_id, *b"Hi"], 1),
        ([BYTES.bos_id, *b"Ho"], 1),
    ]


def test_a_tokenizer_without_a_beginning_takes_the_end_of_the_document_before_only_where_nothing_stands() -> None:
    tokenizer = Tokenizer(BYTES.files()["tokenizer.json"], SpecialTokens(bos=None))
    bare, given = text_rows([options(("", "Hi")), options(("a", " b"))], tokenizer, context=99)
    assert bare.options == [([tokenizer.eos_id, *b"Hi"], 1)] and given.options == [(list(b"a b"), 1)]


def test_a_long_context_loses_its_beginning_alike_for_all_options() -> None:
    [row] = text_rows([options(("0123456789", "abc"), ("0123456789", "x"))], BYTES, context=9)
    assert row.cut
    assert [one.ids for one in row.options] == [[BYTES.bos_id, *b"456789abc"], [BYTES.bos_id, *b"456789x"]]
    assert {one.start for one in row.options} == {7}


def test_what_fits_exactly_is_not_cut_as_its_last_token_is_not_read() -> None:
    [fits, long] = text_rows([options(("01", "abc")), options(("012", "abc"))], BYTES, context=5)
    assert not fits.cut and len(fits.options[0].ids) == 6
    assert long.cut and len(long.options[0].ids) == 6


def test_an_option_that_does_not_fit_leaves_its_item_out() -> None:
    [row] = text_rows([options(("01", "a" * 20), ("01", "b"))], BYTES, context=9)
    assert row.options == [] and not row.cut


def test_a_chat_model_is_asked_in_its_own_format() -> None:
    item = Item((Option("Question: Up?\nAnswer:", " Yes"), Option("Question: Up?\nAnswer:", " No")), 0, question="Up?")
    [row] = chat_rows([item], BYTES, context=99)
    prompt = render_chat([Message(role="user", content="Up?")], BYTES, generation_prompt=True).ids
    assert [one.ids for one in row.options] == [[*prompt, *b"Yes"], [*prompt, *b"No"]]
    assert {one.start for one in row.options} == {len(prompt)}
    assert chat_rows([item], BYTES, context=5)[0].options == []
