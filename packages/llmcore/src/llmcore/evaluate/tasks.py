"""Task files, recognised by their keys: minimal pairs, continuations (last words), and multiple choice.

    {"sentence_good": …, "sentence_bad": …}                 BLiMP                    pair
    {"context": …, "continuation": …}                       LAMBADA, arithmetic      continuation
    {"text": …} or a line of a .txt file                    its last word            continuation
    {"query" or "question": …, "choices": …, "gold" or "answer": …}                  choice
    {"context_options": …, "continuation": …, "gold": …}    Winograd schemas         choice
    {"question": …, "answer_matching_behavior": …, "answer_not_matching_behavior": …}  choice

The right choice is a number from 0, a letter, or the choice itself. A question is put as `Question: …\\nAnswer:`, a
query stands as it is, but for an `Answer:` that its `Question:` lacks. Context and continuation are joined by a space,
unless white space is there already or the continuation begins with punctuation.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from llmcore.errors import DataError
from llmcore.records import rows_error
from llmcore.rows import Row, read_rows

Kind = Literal["pair", "continuation", "choice"]
SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".txt")
SUBTASK_KEYS = ("UID", "category", "subject", "type")
OPENING = "\"'“‘([{<$"
"""Punctuation before which a word's space stands."""


class Option(NamedTuple):
    """What may follow a context; the context, its white space and the continuation together are the text."""

    context: str
    continuation: str


class Item(NamedTuple):
    """One thing to decide: which option is more likely, or whether the only one is what the model would say."""

    options: tuple[Option, ...]
    right: int
    subtask: str = ""
    question: str | None = None
    """What a chat model is asked in the user's turn; None: the item is text and no question."""


class Task(NamedTuple):
    """Items of one kind."""

    name: str
    kind: Kind
    items: list[Item]


def read_task(path: Path) -> Task:
    """A file, or a folder whose files are the sub-tasks of one task.

    Raises DataError for rows of no known shape, named by line, and for files of several kinds.
    """
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.name.endswith(SUFFIXES))
        if not files:
            raise DataError(f"{str(path)!r} holds no task file", hint=f"give a folder with {', '.join(SUFFIXES)}")
    found = [read_file(file, subtask=stem(file) if path.is_dir() else "") for file in files]
    kinds = {kind for kind, _ in found}
    if len(kinds) > 1:
        raise DataError(f"{str(path)!r} mixes {' and '.join(sorted(kinds))} items", hint="give its files one by one")
    return Task(str(path), found[0][0], [item for _, items in found for item in items])


def stem(path: Path) -> str:
    return path.name.partition(".")[0]


def read_file(path: Path, *, subtask: str) -> tuple[Kind, list[Item]]:
    """The items of one file."""
    items: list[Item] = []
    problems: list[str] = []
    kinds: dict[Kind, str] = {}
    for where, row, trouble in text_rows(path) if path.suffix == ".txt" else read_rows(path):
        problem = trouble
        if not problem:
            try:
                kind, item = to_item(row)
                named = next((str(row[key]) for key in SUBTASK_KEYS if isinstance(row.get(key), str)), subtask)
                items.append(item._replace(subtask=named))
                kinds.setdefault(kind, where)
            except ValueError as error:
                problem = str(error)
        if problem:
            problems.append(f"{where}: {problem}")
    if problems:
        raise rows_error(path, problems, len(problems) + len(items), fix="see the shapes in llmcore.evaluate.tasks")
    if len(kinds) > 1:
        places = " and ".join(f"{kind} items ({where})" for kind, where in kinds.items())
        raise DataError(f"{str(path)!r} mixes {places}", hint="give a file of one kind")
    return next(iter(kinds)), items


def text_rows(path: Path) -> Iterator[tuple[str, Row, str]]:
    """Each line of a text file that is not blank, as a row with `text`."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}", hint="give a file in UTF-8") from None
    if not any(line.strip() for line in lines):
        raise DataError(f"{path}: the file is empty", hint="give a file with one passage a line")
    yield from ((f"{path}:{number}", {"text": line}, "") for number, line in enumerate(lines, 1) if line.strip())


def to_item(row: Row) -> tuple[Kind, Item]:
    """The item of a row; ValueError says what is wrong with it."""
    for keys, read in SHAPES:
        if keys <= row.keys():
            return read(row)
    raise ValueError(f"no known shape of a task has the keys {', '.join(map(repr, sorted(row))) or 'of an empty row'}")


def to_pair(row: Row) -> tuple[Kind, Item]:
    good, bad = text(row, "sentence_good"), text(row, "sentence_bad")
    return "pair", Item((Option("", good), Option("", bad)), 0)


def to_continuation(row: Row) -> tuple[Kind, Item]:
    return "continuation", Item((joined(text(row, "context"), text(row, "continuation")),), 0)


def to_last_word(row: Row) -> tuple[Kind, Item]:
    words = text(row, "text").rsplit(None, 1)
    if len(words) < 2:
        raise ValueError(f"'text' has no last word after another: {row['text']!r}")
    return "continuation", Item((joined(*words),), 0)


def to_schema(row: Row) -> tuple[Kind, Item]:
    contexts, continuation = texts(row, "context_options"), text(row, "continuation")
    options = tuple(joined(context, continuation) for context in contexts)
    return "choice", Item(options, index_of(row, "gold", contexts))


def to_behavior(row: Row) -> tuple[Kind, Item]:
    """Right is the answer that matches the behaviour: the accuracy says how often the model would say it."""
    choices = [text(row, "answer_matching_behavior"), text(row, "answer_not_matching_behavior")]
    return "choice", asked(f"Question: {text(row, 'question')}", choices, 0, question=text(row, "question"))


def to_choice(question: str, answer: str) -> Callable[[Row], tuple[Kind, Item]]:
    def read(row: Row) -> tuple[Kind, Item]:
        asks, choices = text(row, question), texts(row, "choices")
        context = asks if question == "query" else f"Question: {asks}"
        return "choice", asked(context, choices, index_of(row, answer, choices), question=asks)

    return read


Reader = Callable[[Row], tuple[Kind, Item]]
SHAPES: tuple[tuple[set[str], Reader], ...] = (
    ({"sentence_good", "sentence_bad"}, to_pair),
    ({"context_options", "continuation", "gold"}, to_schema),
    ({"question", "answer_matching_behavior", "answer_not_matching_behavior"}, to_behavior),
    *(
        ({question, "choices", answer}, to_choice(question, answer))
        for question in ("query", "question")
        for answer in ("gold", "answer")
    ),
    ({"context", "continuation"}, to_continuation),
    ({"text"}, to_last_word),
)


def asked(context: str, choices: list[str], right: int, *, question: str) -> Item:
    """A question and its choices, as text that a base model goes on with, and as a question for a chat model."""
    if "Question:" in context and "Answer:" not in context[context.rindex("Question:") :]:
        context = f"{context.rstrip()}\nAnswer:"
    return Item(tuple(joined(context, choice) for choice in choices), right, question=question)


def joined(context: str, continuation: str) -> Option:
    """Context and continuation, and the space between them where words need one."""
    spaced = context[-1:].isspace() or continuation[:1].isspace() or not context
    word = continuation[:1].isalnum() or continuation[:1] in OPENING
    return Option(context, continuation if spaced or not word else f" {continuation}")


def text(row: Mapping[str, object], key: str) -> str:
    value = row[key]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key!r} should be text, found {value!r}")
    return value


def texts(row: Row, key: str) -> list[str]:
    values = row[key]
    if not isinstance(values, list) or len(values) < 2 or not all(isinstance(v, str) and v.strip() for v in values):
        raise ValueError(f"{key!r} should be a list of two texts or more, found {values!r}")
    return list(values)


def index_of(row: Row, key: str, choices: list[str]) -> int:
    """Which choice is right: given by number from 0, by letter, or by its text."""
    value = row[key]
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(choices):
        return value
    if isinstance(value, str) and choices.count(value) == 1:
        return choices.index(value)
    if isinstance(value, str) and len(value) == 1 and 0 <= ord(value.upper()) - ord("A") < len(choices):
        return ord(value.upper()) - ord("A")
    raise ValueError(f"{key!r} should name one of {len(choices)} choices (from 0, or a letter), found {value!r}")
