"""The shapes in which people have conversations: which one a row has is seen from its keys, and it becomes a record."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from pydantic import ValidationError

from llmcore.config import Config
from llmcore.conversations import Chat, Message, Preference, Prompt, R
from llmcore.rows import Row


class Scanned(NamedTuple):
    """A row as it was found: where, and the record or the reasons why it is none."""

    where: str
    record: Chat | Preference | Prompt | None
    problem: str = ""
    unusable: str = ""
    """A short name for the reason where the row is well formed, but nothing can be learned from it."""


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
