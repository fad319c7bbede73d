"""What `llmcore generate` and `llmcore chat` do: text in, text out, in the terminal."""

import json as json_library
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from llmcore.chat import render_chat
from llmcore.checkpoint import Checkpoint, load_checkpoint
from llmcore.errors import DataError
from llmcore.generate.engine import Completion, generate, stream
from llmcore.generate.noise import sequence_seeds
from llmcore.generate.sampling import Sampling
from llmcore.generate.stops import cut_at_stop
from llmcore.generate.text import printable, stream_text
from llmcore.records import Message
from llmcore.tokenizer import Tokenizer
from llmcore.train.device import place, resolve
from llmcore.train.memory import memory_advice

ANSWER_SHARE = 0.5
"""At most this share of the context is kept free for the answer; it is less if max_new_tokens is."""


def load_policy(folder: Path, *, device: str = "auto", dtype: str = "fp32", base: Path | None = None) -> Checkpoint:
    """The policy in `folder`, where and how precisely `device` and `dtype` say; `base`: see `load_checkpoint`."""
    placement = resolve(device, dtype)
    policy = load_checkpoint(folder, expect="policy", base=base)
    place(policy.model, placement)
    return policy


@memory_advice("the text", lower="--num-samples or --max-new-tokens, or take --dtype bf16")
def run_generate(
    policy: Checkpoint, prompt: str, sampling: Sampling, *, num_samples: int = 1, json: bool = False
) -> None:
    """Continue a text and write it to standard output, as it comes if it is one."""
    ids = text_prompt(prompt, policy.tokenizer)
    if json:
        print(json_library.dumps(as_json(policy, prompt, ids, sampling, num_samples=num_samples), ensure_ascii=False))
    elif num_samples == 1:
        tokens = stream(policy.model, ids, sampling, stop_ids=policy.tokenizer.stop_ids, tokenizer=policy.tokenizer)
        heard: list[int] = []
        write(prompt)
        for piece in stream_text(noted(tokens, heard), policy.tokenizer, stop=sampling.stop):
            write(piece)
        write("\n")
        if cut_by_context(policy, ids, heard) and len(heard) < sampling.max_new_tokens:
            print(f"(cut where the model's context of {policy.model.config.context} tokens ends)", file=sys.stderr)
    else:
        for number, (text, _) in enumerate(samples(policy, ids, sampling, num_samples=num_samples), 1):
            write(f"── {number} ──\n{prompt}{text}\n")


@memory_advice("the conversation", lower="--max-new-tokens, or take --dtype bf16 or a smaller policy")
def run_chat(
    policy: Checkpoint, sampling: Sampling, *, system: str = "", read_line: Callable[[], str] | None = None
) -> None:
    """Talk with a policy until the input ends; `/new` begins a new conversation.

    When the conversation outgrows the context, the oldest turns after the system message are dropped.
    """
    console = Console(highlight=False, soft_wrap=True)
    console.print("[dim]Ctrl-C stops an answer, /new begins again, Ctrl-D ends.[/dim]")
    read_line = read_line or (lambda: console.input("[bold cyan]you[/bold cyan] › "))
    start = [Message(role="system", content=system)] if system else []
    messages = list(start)
    with suppress(EOFError):
        for turn in range(sys.maxsize):
            said = read_line().strip()
            if said == "/new":
                messages = list(start)
            elif said:
                asked = [*messages, Message(role="user", content=said)]
                with told(console):
                    seed = sequence_seeds(sampling.seed, [turn])[0]
                    messages = answer(policy, asked, sampling.model_copy(update={"seed": seed}), console=console)
    console.print()


class Fitted(NamedTuple):
    """A conversation that leaves room for an answer."""

    messages: list[Message]
    ids: list[int]
    dropped: int
    """Turns, each a message, that had to go."""


def fit_context(messages: Sequence[Message], tokenizer: Tokenizer, *, context: int, answer_tokens: int) -> Fitted:
    """Drop the oldest turns after the system message until `answer_tokens` (at most half the context) are free.

    A turn goes with the answer to it, so that what is left begins with the user; the last message always stays.
    """
    room = context - min(answer_tokens, int(ANSWER_SHARE * context))
    head = [message for message in messages[:1] if message.role == "system"]
    rest = list(messages[len(head) :])
    dropped = 0
    while True:
        ids = render_chat([*head, *rest], tokenizer, generation_prompt=True).ids
        if len(ids) <= room:
            return Fitted([*head, *rest], ids, dropped)
        following = next((i for i, message in enumerate(rest) if i and message.role == "user"), None)
        if following is None:
            raise DataError(
                f"the message has {len(ids)} tokens with its frame, but only {room} of the model's context of "
                f"{context} are there for it",
                hint="write a shorter message, or ask for a shorter answer with --max-new-tokens",
            )
        rest, dropped = rest[following:], dropped + following


def answer(policy: Checkpoint, messages: Sequence[Message], sampling: Sampling, *, console: Console) -> list[Message]:
    """Stream the answer to a conversation into the terminal; the conversation with it, less what had to be dropped."""
    model, tokenizer = policy.model, policy.tokenizer
    context = model.config.context
    fitted = fit_context(messages, tokenizer, context=context, answer_tokens=sampling.max_new_tokens)
    if fitted.dropped:
        console.print(
            f"[dim](the context of {context} tokens is full: the oldest {fitted.dropped} messages are dropped)[/dim]"
        )
    heard: list[int] = []
    tokens = stream(model, fitted.ids, sampling, stop_ids=tokenizer.stop_ids, tokenizer=tokenizer)
    console.print("[bold green]model[/bold green] › ", end="")
    said = ""
    try:
        for piece in stream_text(noted(tokens, heard), tokenizer, stop=sampling.stop):
            console.out(printable(piece), end="", highlight=False)
            said += piece
    except KeyboardInterrupt:
        console.print("[dim] (stopped)[/dim]", end="")
    finally:
        tokens.close()
    console.print()
    if cut_by_context(policy, fitted.ids, heard):
        console.print(f"[dim](the answer was cut where the context of {context} tokens ends)[/dim]")
    return [*fitted.messages, Message(role="assistant", content=said)]


def cut_by_context(policy: Checkpoint, prompt: Sequence[int], heard: Sequence[int]) -> bool:
    """Whether a stream ended because the context did."""
    config = policy.model.config
    stopped = not heard or heard[-1] in policy.tokenizer.stop_ids
    return not stopped and not config.endless and len(prompt) + len(heard) >= config.context


def noted(tokens: Iterable[int], heard: list[int]) -> Iterator[int]:
    """The tokens, each added to `heard` as it passes."""
    for token in tokens:
        heard.append(token)
        yield token


@contextmanager
def told(console: Console) -> Iterator[None]:
    """What is wrong with a message is said, and the conversation goes on without it."""
    try:
        yield
    except DataError as error:
        console.print(f"error: {error}", style="red", markup=False)


def text_prompt(text: str, tokenizer: Tokenizer) -> list[int]:
    """A text as the beginning of a document."""
    ids = tokenizer.encode(text)
    ids = ids if tokenizer.bos_id is None else [tokenizer.bos_id, *ids]
    if not ids:
        raise DataError("the prompt is empty, and this tokenizer has no token to begin with", hint="give --prompt TEXT")
    return ids


def samples(
    policy: Checkpoint, ids: Sequence[int], sampling: Sampling, *, num_samples: int
) -> list[tuple[str, Completion]]:
    """Continuations of one prompt, each as text up to a stop string and as tokens."""
    model, tokenizer = policy.model, policy.tokenizer
    found = generate(model, [ids], sampling, stop_ids=tokenizer.stop_ids, num_samples=num_samples, tokenizer=tokenizer)
    return [(cut_at_stop(tokenizer.decode(one.ids), sampling.stop), one) for one in found[0]]


def as_json(
    policy: Checkpoint, prompt: str, ids: Sequence[int], sampling: Sampling, *, num_samples: int
) -> dict[str, object]:
    """One document for machines."""
    return {
        "prompt": prompt,
        "prompt_tokens": len(ids),
        "completions": [
            {"text": text, "tokens": len(one.ids), "logprob": sum(one.logprobs), "stopped": one.stopped}
            for text, one in samples(policy, ids, sampling, num_samples=num_samples)
        ],
    }


def write(text: str) -> None:
    """Put text on standard output at once; a terminal gets no control characters from a model."""
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()
