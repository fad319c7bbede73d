"""Chat formats: how each kind of model has its conversations written, as Python functions by name.

A format yields pieces in order; only a piece marked as control can become a control token, whatever the text says.
Those of published models are equal to the templates that come with them (a test renders both), and so are the
templates that an export writes.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from llmcore.errors import ConfigError, DataError
from llmcore.records import Message
from llmcore.tokenizer import SpecialTokens


class Piece(NamedTuple):
    """A part of a rendered conversation: one control token, or text."""

    text: str
    control: bool = False
    trained: bool = False


Format = Callable[[Sequence[Message], SpecialTokens, bool], Iterator[Piece]]


def chatml(messages: Sequence[Message], special: SpecialTokens, generation_prompt: bool) -> Iterator[Piece]:
    """`<|im_start|>role⏎content<|im_end|>⏎` for each message."""
    start = Piece("<|im_start|>", control=True)
    for message in messages:
        yield start
        if message.role == "assistant":
            # The header stands alone, as it does before an answer that is still to be generated.
            yield Piece("assistant\n")
            yield Piece(message.content, trained=True)
            yield Piece(special.end_of_turn, control=True, trained=True)
        else:
            yield Piece(f"{message.role}\n{message.content}")
            yield Piece(special.end_of_turn, control=True)
        yield Piece("\n")
    if generation_prompt:
        yield start
        yield Piece("assistant\n")


def plain(messages: Sequence[Message], special: SpecialTokens, _generation_prompt: bool) -> Iterator[Piece]:
    """The bare contents, a newline after each: prompt and completion without any roles."""
    for message in messages:
        trained = message.role == "assistant"
        yield Piece(message.content, trained=trained)
        if trained:
            yield Piece(special.end_of_turn, control=True, trained=True)
        yield Piece("\n")


def qwen2(messages: Sequence[Message], special: SpecialTokens, generation_prompt: bool) -> Iterator[Piece]:
    """ChatML with a system message always there (Qwen 2)."""
    return chatml(with_system(messages, "You are a helpful assistant."), special, generation_prompt)


def qwen25(messages: Sequence[Message], special: SpecialTokens, generation_prompt: bool) -> Iterator[Piece]:
    """ChatML with a system message always there (Qwen 2.5)."""
    default = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    return chatml(with_system(messages, default), special, generation_prompt)


def qwen3(messages: Sequence[Message], special: SpecialTokens, generation_prompt: bool) -> Iterator[Piece]:
    """ChatML in which the last answer begins with what was thought, and earlier answers drop it (Qwen 3)."""
    last_question = max((i for i, message in enumerate(messages) if message.role == "user"), default=-1)
    shown = []
    for number, message in enumerate(messages):
        if message.role == "assistant":
            thought, answer = split_thought(message.content)
            if number > last_question and (thought or number == len(messages) - 1):
                answer = f"<think>\n{thought}\n</think>\n\n{answer}"
            message = message.model_copy(update={"content": answer})
        shown.append(message)
    return chatml(shown, special, generation_prompt)


def llama2(messages: Sequence[Message], special: SpecialTokens, _generation_prompt: bool) -> Iterator[Piece]:
    """`<s>[INST] <<SYS>>⏎system⏎<</SYS>>⏎⏎user [/INST] answer </s>`, each exchange as if it began (Llama 2)."""
    for number, message in enumerate(system_in_question(messages, "<<SYS>>\n", "\n<</SYS>>\n\n")):
        if message.role == "assistant":
            yield Piece(f" {message.content.strip()} ", trained=True)
            yield Piece(special.end_of_turn, control=True, trained=True)
            continue
        if number and special.bos is not None:
            yield Piece(special.bos, control=True)
        yield Piece(f"[INST] {message.content.strip()} [/INST]")


def mistral(messages: Sequence[Message], special: SpecialTokens, _generation_prompt: bool) -> Iterator[Piece]:
    """`<s> [INST] user [/INST] answer</s>`, the marks written as text (Mistral 7B v0.1 and v0.2)."""
    for message in system_in_question(messages, "", "\n\n"):
        if message.role == "assistant":
            yield Piece(f" {message.content}", trained=True)
            yield Piece(special.end_of_turn, control=True, trained=True)
        else:
            yield Piece(f" [INST] {message.content} [/INST]")


def mistral_v3(messages: Sequence[Message], special: SpecialTokens, _generation_prompt: bool) -> Iterator[Piece]:
    """The same with marks that are control tokens, and the system text before the last question (Mistral 7B v0.3)."""
    for message in system_in_question(messages, "", "\n\n", last=True):
        if message.role == "assistant":
            yield Piece(f" {message.content.strip()}", trained=True)
            yield Piece(special.end_of_turn, control=True, trained=True)
        else:
            yield Piece("[INST]", control=True)
            yield Piece(f" {message.content}")
            yield Piece("[/INST]", control=True)


def llama3(messages: Sequence[Message], special: SpecialTokens, generation_prompt: bool) -> Iterator[Piece]:
    """A header with the role, an empty line, the text, `<|eot_id|>` (Llama 3)."""
    for message in messages:
        yield from llama3_header(message.role)
        yield Piece(message.content.strip(), trained=message.role == "assistant")
        yield Piece(special.end_of_turn, control=True, trained=message.role == "assistant")
    if generation_prompt:
        yield from llama3_header("assistant")


def llama31(messages: Sequence[Message], special: SpecialTokens, generation_prompt: bool) -> Iterator[Piece]:
    """Llama 3 with two dates before every system text (Llama 3.1); the second is that of its own template."""
    has_system = bool(messages) and messages[0].role == "system"
    system = messages[0].content.strip() if has_system else ""
    yield from llama3_header("system")
    yield Piece(f"{LLAMA31_DATES}\n\n{system}")
    yield Piece(special.end_of_turn, control=True)
    yield from llama3(messages[1:] if has_system else messages, special, generation_prompt)


def llama3_header(role: str) -> Iterator[Piece]:
    yield Piece("<|start_header_id|>", control=True)
    yield Piece(role)
    yield Piece("<|end_header_id|>", control=True)
    yield Piece("\n\n")


def gemma(messages: Sequence[Message], special: SpecialTokens, generation_prompt: bool) -> Iterator[Piece]:
    """`<start_of_turn>role⏎text<end_of_turn>⏎`, the assistant called model; a system text opens the first question."""
    start = Piece("<start_of_turn>", control=True)
    for message in system_in_question(messages, "", "\n\n"):
        trained = message.role == "assistant"
        yield start
        yield Piece("model\n" if trained else f"{message.role}\n")
        yield Piece(message.content.strip(), trained=trained)
        yield Piece(special.end_of_turn, control=True, trained=trained)
        yield Piece("\n")
    if generation_prompt:
        yield start
        yield Piece("model\n")


def none(_messages: Sequence[Message], _special: SpecialTokens, _generation_prompt: bool) -> Iterator[Piece]:
    """Of a model that was imported without a chat format."""
    raise ConfigError(
        "this model has no chat format: its own was not known when it was imported",
        hint=f"import it again with --chat and one of {', '.join(name for name in FORMATS if name != 'none')}",
    )


LLAMA31_DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024"


def with_system(messages: Sequence[Message], default: str) -> Sequence[Message]:
    """The messages, a system message first."""
    if messages and messages[0].role == "system":
        return messages
    return [Message(role="system", content=default), *messages]


def split_thought(answer: str) -> tuple[str, str]:
    """(what stands between the think tags, what follows them)."""
    thought, closed, rest = answer.rpartition("</think>")
    if not closed:
        return "", answer.lstrip("\n")
    return thought.split("</think>")[0].split("<think>")[-1].strip("\n"), rest.lstrip("\n")


def system_in_question(messages: Sequence[Message], before: str, after: str, *, last: bool = False) -> list[Message]:
    """The messages of a format without a system role: its text opens the first (or last) question."""
    if not messages or messages[0].role != "system":
        return list(messages)
    rest = list(messages[1:])
    questions = [number for number, message in enumerate(rest) if message.role == "user"]
    if not questions:
        raise DataError(
            "this model's chat format puts the system text into a question, and there is no question",
            hint="give a message of the user, or leave the system message out",
        )
    chosen = questions[-1] if last else questions[0]
    text = before + messages[0].content + after + rest[chosen].content
    rest[chosen] = Message(role="user", content=text)
    return rest


FORMATS: dict[str, Format] = {
    "chatml": chatml,
    "plain": plain,
    "qwen2": qwen2,
    "qwen2.5": qwen25,
    "qwen3": qwen3,
    "llama2": llama2,
    "llama3": llama3,
    "llama3.1": llama31,
    "mistral": mistral,
    "mistral-v3": mistral_v3,
    "gemma": gemma,
    "none": none,
}
