"""Rows of conversations: Chat, Preference and Prompt, read from the shapes people have and written in one.

A records artifact is a folder with train.jsonl, valid.jsonl and manifest.json. Outside files, JSONL or one JSON array,
plain or gzipped, are read as they are; which of the common shapes a row has is seen from its keys.
"""

import gzip
import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Annotated, Any, Literal, NamedTuple, TypeVar, cast

from pydantic import Field, JsonValue, ValidationError

from llmcore.config import Config
from llmcore.errors import DataError
from llmcore.manifest import Manifest, describe_file, verify_artifact
from llmcore.storage import write_durably

LINE_LIMIT = 16 * 2**20
ARRAY_LIMIT = 2**30
SHOWN_ERRORS = 20
VALID_FRACTION = 0.05
USE_LLMDATA = (
    "mend them, or use llmdata records: it drops and counts rows that teach nothing, and takes other keys by "
    "--map prompt=question,completion=answer"
)


class Message(Config):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    """Who speaks."""
    content: str
    """What is said."""


Messages = Annotated[tuple[Message, ...], Field(min_length=1)]


class Chat(Config):
    """A conversation to learn from: the assistant's turns are trained on."""

    messages: Messages
    """The turns, in order."""
    extra: dict[str, JsonValue] = {}
    """The row's other keys that were asked for, as a curriculum does."""


class Preference(Config):
    """Two answers to one prompt, of which one is better."""

    prompt: Messages
    """The conversation up to the answer."""
    chosen: str
    """The better answer."""
    rejected: str
    """The worse answer."""
    margin: float | None = None
    """By how much, where it is known."""


class Prompt(Config):
    """A prompt to answer, with what a reward function needs to check the answer."""

    prompt: Messages
    """The conversation up to the answer."""
    answer: str = ""
    """The right answer, where there is one."""
    extra: dict[str, JsonValue] = {}
    """The row's other keys, given to reward functions."""


R = TypeVar("R", Chat, Preference, Prompt)
Row = dict[str, Any]
KINDS: dict[type[Config], str] = {Chat: "chats", Preference: "preferences", Prompt: "prompts"}


class Scanned(NamedTuple):
    """A row as it was found: where, and the record or the reasons why it is none."""

    where: str
    record: Chat | Preference | Prompt | None
    problem: str = ""
    unusable: str = ""
    """A short name for the reason where the row is well formed, but nothing can be learned from it."""


def read_records(
    path: Path | str, kind: type[R], *, mapping: Mapping[str, str] | None = None, keep: Collection[str] = ()
) -> list[R]:
    """Every row of a file as `kind`; all mistakes are reported together, with file and line.

    The keys `keep` of a row go to the record's `extra`.
    """
    records: list[R] = []
    problems: list[str] = []
    for scanned in scan_records(path, kind, mapping=mapping, keep=keep):
        if scanned.record is None:
            problems.append(f"{scanned.where}: {scanned.problem}")
        else:
            records.append(cast(R, scanned.record))
    if problems:
        raise rows_error(path, problems, len(problems) + len(records))
    return records


def rows_error(path: Path | str, problems: Sequence[str], rows: int, *, fix: str = "") -> DataError:
    """One error for all bad rows: the first twenty, and how many there are."""
    more = len(problems) - SHOWN_ERRORS
    lines = [*problems[:SHOWN_ERRORS], *([f"… and {more} more"] if more > 0 else [])]
    return DataError(
        "\n".join([f"{len(problems)} of {rows} rows of {str(path)!r} cannot be used:", *lines]),
        hint=fix or USE_LLMDATA,
    )


def scan_records(
    path: Path | str, kind: type[R], *, mapping: Mapping[str, str] | None = None, keep: Collection[str] = ()
) -> Iterator[Scanned]:
    """Each row of a file, good or bad; only a file that cannot be read at all raises."""
    for where, row, problem in read_rows(Path(path)):
        if problem:
            yield Scanned(where, None, problem)
            continue
        kept = {key: row[key] for key in keep if key in row}
        rest = {key: value for key, value in row.items() if key not in kept} if kept else row
        scanned = scan_row(where, rest, kind, mapping or {})
        yield with_extra(scanned, kept) if kept else scanned


def with_extra(scanned: Scanned, kept: Mapping[str, JsonValue]) -> Scanned:
    """The same with more in its record's `extra`."""
    if not isinstance(scanned.record, Chat | Prompt):
        return scanned
    record = scanned.record.model_copy(update={"extra": {**scanned.record.extra, **kept}})
    return scanned._replace(record=record)


def write_records(path: Path | str, rows: Iterable[Chat | Preference | Prompt]) -> None:
    """Write rows as canonical JSONL, durably."""
    write_durably(Path(path), "".join(canonical(row) + "\n" for row in rows).encode())


def canonical(row: Chat | Preference | Prompt) -> str:
    """A row as one line of JSON, always spelled the same."""
    absent = {"margin"} if isinstance(row, Preference) and row.margin is None else set()
    absent |= {"extra"} if isinstance(row, Chat) and not row.extra else set()
    return json.dumps(row.model_dump(mode="json", exclude=absent), ensure_ascii=False, separators=(",", ":"))


def load_records(
    path: Path | str, kind: type[R], split: Literal["train", "valid"], *, keep: Collection[str] = ()
) -> tuple[list[R], Manifest]:
    """One split of a records artifact, of a folder with train.jsonl and valid.jsonl, or of a plain file.

    Of a plain file, the split is decided by a hash of each row's prompt. Train and valid never share a prompt.
    """
    path = Path(path)
    if path.is_dir() and (path / "manifest.json").exists():
        manifest = verify_artifact(path, expect=KINDS[kind])
        return read_records(path / f"{split}.jsonl", kind, keep=keep), manifest
    if path.is_dir():
        train, valid = (read_records(path / f"{name}.jsonl", kind, keep=keep) for name in ("train", "valid"))
        refuse_shared_prompts(path, train, valid)
        manifest = describe_file(path / f"{split}.jsonl")
    else:
        train, valid = split_records(read_records(path, kind, keep=keep))
        manifest = describe_file(path)
    return (train if split == "train" else valid), manifest


def split_records(rows: Sequence[R], *, fraction: float = VALID_FRACTION) -> tuple[list[R], list[R]]:
    """(train, valid): rows with equal prompts fall on one side; with two or more prompts, neither side is empty."""
    hashes = [prompt_hash(row) for row in rows]
    distinct = sorted(set(hashes))
    chosen = {value for value in distinct if int(value[:16], 16) < fraction * 2**64}
    if len(distinct) >= 2 and len(chosen) in (0, len(distinct)):
        chosen = {distinct[0]}
    if len(distinct) < 2:
        chosen = set()
    train = [row for row, value in zip(rows, hashes, strict=True) if value not in chosen]
    valid = [row for row, value in zip(rows, hashes, strict=True) if value in chosen]
    return train, valid


def prompt_hash(row: Chat | Preference | Prompt) -> str:
    """A hash of what is asked: the turns up to the first answer."""
    turns = row.messages if isinstance(row, Chat) else row.prompt
    asked: list[list[str]] = []
    for turn in turns:
        if turn.role == "assistant":
            break
        asked.append([turn.role, turn.content.strip()])
    if not asked:
        asked = [[turn.role, turn.content.strip()] for turn in turns]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def refuse_shared_prompts(path: Path, train: Sequence[R], valid: Sequence[R]) -> None:
    shared = {prompt_hash(row) for row in train} & {prompt_hash(row) for row in valid}
    if shared:
        raise DataError(
            f"{path}: {len(shared)} prompts are in both train.jsonl and valid.jsonl",
            hint="remove them from one, or give a single file, which is split by prompt",
        )


# Reading files ------------------------------------------------------------------------------------------------------


def read_rows(path: Path) -> Iterator[tuple[str, Row, str]]:
    """(where, row, problem) for each row of a JSONL file or JSON array, plain or gzipped."""
    if not path.is_file():
        what = "not a regular file" if path.exists() else "no such file"
        raise DataError(f"{str(path)!r}: {what}", hint="give a .jsonl or .json file, plain or .gz")
    empty = True
    try:
        with open_plain_or_gzip(path) as file:
            first = file.peek(64)[:64] if hasattr(file, "peek") else b""
            if first.startswith(b"\xef\xbb\xbf"):
                raise DataError(
                    f"{path}:1: the file begins with a byte order mark", hint="save it as UTF-8 without a BOM"
                )
            rows = array_rows(path, file) if first.lstrip()[:1] == b"[" else line_rows(path, file)
            for item in rows:
                empty = False
                yield item
    except (EOFError, gzip.BadGzipFile, OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}", hint="is the file complete?") from None
    if empty:
        raise DataError(f"{path}: the file is empty", hint="give a file with at least one row")


def open_plain_or_gzip(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return cast(IO[bytes], gzip.open(path, "rb")) if zipped else path.open("rb")


def line_rows(path: Path, file: IO[bytes]) -> Iterator[tuple[str, Row, str]]:
    """The rows of JSONL; blank lines are none."""
    number = 0
    while line := file.readline(LINE_LIMIT + 2):
        number += 1
        where = f"{path}:{number}"
        if len(line) > LINE_LIMIT + 1:
            raise DataError(f"{where}: the line is longer than {LINE_LIMIT} bytes", hint="one object a line")
        if line.strip():
            yield where, *parse_row(line)


def array_rows(path: Path, file: IO[bytes]) -> Iterator[tuple[str, Row, str]]:
    """The rows of one JSON array; a file of lines that are arrays is not one, and its rows say so."""
    data = file.read(ARRAY_LIMIT + 1)
    if len(data) > ARRAY_LIMIT:
        raise DataError(f"{path}: a JSON array of more than {ARRAY_LIMIT} bytes", hint="write it as JSONL")
    values, problem = parse_json(data)
    if problem:
        raise DataError(f"{path}: {problem}", hint="give one JSON array of objects, or one object a line")
    for number, value in enumerate(cast(list[object], values), 1):
        where = f"{path}: row {number}"
        yield (where, value, "") if isinstance(value, dict) else (where, {}, not_an_object(value))


def parse_row(line: bytes) -> tuple[Row, str]:
    value, problem = parse_json(line)
    if not problem and not isinstance(value, dict):
        problem = not_an_object(value)
    return (cast(Row, value), "") if not problem else ({}, problem)


def not_an_object(value: object) -> str:
    return f"expected an object with keys, found {type(value).__name__}"


def parse_json(data: bytes) -> tuple[object, str]:
    """(value, what is wrong with it): strict UTF-8, no NaN, no halves of surrogate pairs."""
    try:
        text = data.decode("utf-8")
        value = json.loads(text, parse_constant=refuse_constant)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        return None, f"not UTF-8 at byte {error.start}"
    except UnicodeEncodeError:
        return None, "holds half of a surrogate pair"
    except json.JSONDecodeError as error:
        return None, f"not JSON: {error.msg} at character {error.pos}"
    except (ValueError, RecursionError) as error:
        return None, f"not JSON: {error}"
    return value, ""


def refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


# Rows to records ----------------------------------------------------------------------------------------------------


class MalformedError(Exception):
    """A row that does not have the shape it should have."""


class UnusableError(Exception):
    """A well-formed row from which nothing can be learned: (short name, sentence)."""


def scan_row(where: str, row: Row, kind: type[R], mapping: Mapping[str, str]) -> Scanned:
    try:
        return Scanned(where, CONVERTERS[kind](rename_keys(row, kind, mapping)))
    except MalformedError as error:
        return Scanned(where, None, str(error))
    except UnusableError as error:
        return Scanned(where, None, error.args[1], error.args[0])
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in problem["loc"])
        return Scanned(where, None, f"{field}: {problem['msg']}")


def rename_keys(row: Row, kind: type[R], mapping: Mapping[str, str]) -> Row:
    """The row under the names that `mapping` (ours = theirs) gives; the keys it does not name are left out."""
    if not mapping:
        return row
    for theirs in mapping.values():
        if theirs not in row:
            raise MalformedError(f"{theirs}: missing (--map names it; found {found(row)})")
    renamed = {ours: row[theirs] for ours, theirs in mapping.items()}
    if kind is Prompt:
        others = {key: value for key, value in row.items() if key not in mapping.values()}
        return {**others, **renamed}
    return renamed


def found(row: Row) -> str:
    return ", ".join(list(row)[:12]) or "no keys"


LABELS = frozenset({"id", "idx", "index", "prompt_id", "source", "dataset", "category", "topic", "language"})


def take(row: Row, *, required: Sequence[str], optional: Sequence[str] = ()) -> None:
    """Refuse a row that has other keys than these, unless they only say where it is from."""
    unknown = [key for key in row if key not in required and key not in optional and key not in LABELS]
    if unknown:
        raise MalformedError(
            f"{unknown[0]}: unknown key beside {', '.join(required)} (name the keys you mean with --map)"
        )


def to_chat(row: Row) -> Chat:
    """messages · prompt, completion | response · instruction, input?, output | response · question, answer ·
    instruction, instances · conversations."""
    answer = next((key for key in ("completion", "response", "output") if key in row), "completion")
    if "messages" in row:
        take(row, required=["messages"], optional=["extra"])
        messages = to_messages(row["messages"], "messages")
    elif "conversations" in row:
        take(row, required=["conversations"], optional=["system"])
        messages = [*system(row), *to_messages(row["conversations"], "conversations")]
    elif "prompt" in row and answer in row:
        take(row, required=["prompt", answer], optional=["system"])
        messages = [*system(row), *to_prompt(row["prompt"], "prompt"), *to_answer(row[answer], answer)]
    elif "instruction" in row and answer in row:
        take(row, required=["instruction", answer], optional=["input", "system"])
        messages = [*alpaca(row), *to_answer(row[answer], answer)]
    elif "instruction" in row and "instances" in row:
        messages = [*alpaca(instance := only_instance(row)), *to_answer(instance["output"], "instances.0.output")]
    elif "question" in row and "answer" in row:
        take(row, required=["question", "answer"], optional=["system"])
        messages = [*system(row), *to_prompt(row["question"], "question"), *to_answer(row["answer"], "answer")]
    else:
        raise no_shape(
            row, "messages; prompt and completion; instruction and output; question and answer; or conversations"
        )
    if not any(message.role == "assistant" for message in messages):
        raise UnusableError("no_answer", "messages: no turn of the assistant to learn from")
    if not any(message.content for message in messages if message.role == "assistant"):
        raise UnusableError("empty_answer", "messages: the assistant says nothing")
    return Chat(messages=tuple(messages), extra=row.get("extra") or {})


def to_preference(row: Row) -> Preference:
    """prompt, chosen, rejected · chosen, rejected with a shared beginning · instruction, … · conversations, …"""
    if not {"chosen", "rejected"} <= row.keys():
        raise no_shape(row, "chosen and rejected, with prompt, instruction or conversations unless they hold it")
    shown = ("prompt", "instruction", "conversations")
    lead = next((key for key in shown if key in row), "")
    optional = {"": (), "prompt": ("system",), "instruction": ("input", "output", "system")}.get(lead, ("system",))
    take(row, required=[*([lead] if lead else []), "chosen", "rejected"], optional=[*optional, "margin"])
    prompt = to_shared(row, lead)
    chosen = to_whole_answer(row["chosen"], "chosen")
    rejected = to_whole_answer(row["rejected"], "rejected")
    if not lead or starts_with(chosen, prompt):
        prompt, chosen, rejected = part_at_answer(prompt, chosen, rejected)
    if len(chosen) != 1 or len(rejected) != 1:
        raise UnusableError("parts_early", "chosen: parts from rejected before the last answer")
    if chosen[0].content == rejected[0].content:
        raise UnusableError("equal_answers", "rejected: the same as chosen")
    return Preference(
        prompt=tuple(prompt), chosen=chosen[0].content, rejected=rejected[0].content, margin=row.get("margin")
    )


def to_shared(row: Row, lead: str) -> list[Message]:
    """The prompt of a preference row, where it stands apart from the answers."""
    if lead == "instruction":
        return alpaca(row)
    if lead == "prompt":
        return [*system(row), *to_prompt(row["prompt"], "prompt")]
    if lead == "conversations":
        return [*system(row), *to_messages(row["conversations"], "conversations")]
    return []


def starts_with(messages: list[Message], prompt: list[Message]) -> bool:
    """Whether an answer repeats the prompt before it, as TRL's explicit-prompt rows may."""
    return len(messages) > len(prompt) and messages[: len(prompt)] == prompt


def part_at_answer(
    prompt: list[Message], chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], list[Message], list[Message]]:
    """Move the turns that both begin with to the prompt; two last answers may be equal and are no prompt."""
    shared = 0
    for left, right in zip(chosen[:-1], rejected[:-1], strict=False):
        if left != right:
            break
        shared += 1
    del prompt
    return chosen[:shared], chosen[shared:], rejected[shared:]


def to_prompt_record(row: Row) -> Prompt:
    """prompt, answer? · instruction, input?, output? · messages; whatever else the row has goes to `extra`."""
    rest = dict(row)
    extra = rest.pop("extra", {})
    if not isinstance(extra, dict):
        raise MalformedError(f"extra: expected an object, found {type(extra).__name__}")
    if "prompt" in rest:
        prompt = [*system(rest), *to_prompt(rest.pop("prompt"), "prompt")]
    elif "instruction" in rest:
        prompt = alpaca(rest)
        rest = {key: value for key, value in rest.items() if key not in ("instruction", "input")}
        rest.setdefault("answer", rest.pop("output", ""))
    elif "messages" in rest:
        prompt = to_messages(rest.pop("messages"), "messages")
        if prompt and prompt[-1].role == "assistant":
            rest.setdefault("answer", prompt.pop().content)
    else:
        raise no_shape(row, "prompt; instruction; or messages")
    rest.pop("system", None)
    answer = rest.pop("answer", "")
    if isinstance(answer, dict | list) or answer is None:
        raise MalformedError(f"answer: expected text or a number, found {type(answer).__name__}")
    text = answer if isinstance(answer, str) else json.dumps(answer)
    return Prompt(prompt=tuple(prompt), answer=text, extra={**rest, **extra})


def no_shape(row: Row, shapes: str) -> MalformedError:
    return MalformedError(f"found the keys {found(row)}; expected {shapes}")


def system(row: Row) -> list[Message]:
    text = row.get("system") or ""
    return [Message(role="system", content=as_text(text, "system"))] if text else []


def alpaca(row: Row) -> list[Message]:
    """instruction and input as one user turn, a blank line between them."""
    parts = [as_text(row["instruction"], "instruction"), as_text(row.get("input") or "", "input")]
    return [*system(row), Message(role="user", content="\n\n".join(part for part in parts if part))]


def only_instance(row: Row) -> Row:
    """A self-instruct row as instruction, input and output; it has one instance."""
    take(row, required=["instruction", "instances"], optional=["name", "is_classification", "motivation_app"])
    instances = row["instances"]
    if not isinstance(instances, list) or len(instances) != 1 or not isinstance(instances[0], dict):
        raise MalformedError("instances: expected a list of one object (give each instance a row of its own)")
    take(instances[0], required=["output"], optional=["input"])
    if "output" not in instances[0]:
        raise MalformedError(f"instances.0.output: missing (found {found(instances[0])})")
    return {"instruction": row["instruction"], **instances[0]}


def to_prompt(value: object, field: str) -> list[Message]:
    if isinstance(value, str):
        return transcript(value) or [Message(role="user", content=value)]
    return to_messages(value, field)


def to_answer(value: object, field: str) -> list[Message]:
    """An answer as text, as one message, or as a list of messages."""
    if isinstance(value, str):
        return [Message(role="assistant", content=value)]
    messages = to_messages([value] if isinstance(value, dict) else value, field)
    if messages[-1].role != "assistant":
        raise MalformedError(f"{field}: the last turn is by {messages[-1].role!r}, not the assistant")
    return messages


def to_whole_answer(value: object, field: str) -> list[Message]:
    """An answer that may hold its conversation, as messages or as a transcript."""
    turns = transcript(value) if isinstance(value, str) else []
    if not turns:
        return to_answer(value, field)
    if turns[-1].role != "assistant":
        raise UnusableError("no_answer", f"{field}: the transcript does not end with the assistant")
    return turns


def to_messages(value: object, field: str) -> list[Message]:
    """A list of {role, content} or {from, value}."""
    if not isinstance(value, list) or not value:
        raise MalformedError(
            f"{field}: expected a list of messages, found {type(value).__name__ if value else 'nothing'}"
        )
    return [to_message(item, f"{field}.{number}") for number, item in enumerate(value)]


def to_message(item: object, field: str) -> Message:
    if not isinstance(item, dict):
        raise MalformedError(f"{field}: expected a message, found {type(item).__name__}")
    role_key, content_key = ("from", "value") if "from" in item else ("role", "content")
    unknown = [key for key in item if key not in (role_key, content_key)]
    missing = [key for key in (role_key, content_key) if key not in item]
    if unknown or missing:
        what = f"{missing[0]}: missing" if missing else f"{unknown[0]}: unknown key"
        raise MalformedError(f"{field}.{what} (a message has {role_key} and {content_key})")
    role = ROLES.get(str(item[role_key]))
    if role is None:
        raise MalformedError(f"{field}.{role_key}: {item[role_key]!r} is none of {', '.join(ROLES)}")
    return Message(role=role, content=as_text(item[content_key], f"{field}.{content_key}"))


def as_text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise MalformedError(f"{field}: expected text, found {type(value).__name__}")
    return value


def transcript(text: str) -> list[Message]:
    """The turns of `\\n\\nHuman: … \\n\\nAssistant: …`; none where the text is no transcript."""
    if not text.startswith("\n\nHuman:"):
        return []
    parts = re.split(r"\n\n(Human|Assistant):", text)
    roles: dict[str, Literal["user", "assistant"]] = {"Human": "user", "Assistant": "assistant"}
    turns = zip(parts[1::2], parts[2::2], strict=True)
    return [Message(role=roles[speaker], content=content.strip()) for speaker, content in turns]


ROLES: dict[str, Literal["system", "user", "assistant", "tool"]] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "human": "user",
    "gpt": "assistant",
    "observation": "tool",
}
CONVERTERS: dict[type[Config], Callable[[Row], Chat | Preference | Prompt]] = {
    Chat: to_chat,
    Preference: to_preference,
    Prompt: to_prompt_record,
}
