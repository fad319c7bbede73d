"""What a policy answers where a conversation has an answer already, and whether that is right."""

from collections.abc import Callable, Sequence

from llmcore.chat import render_chat
from llmcore.errors import DataError
from llmcore.generate.engine import generate
from llmcore.generate.noise import sequence_seeds
from llmcore.generate.sampling import Sampling
from llmcore.literals import same_literal
from llmcore.model.transformer import Transformer
from llmcore.records import Chat
from llmcore.tokenizer import Tokenizer

PROMPTS = 128
"""Prompts that are answered together."""


def answerable(chats: Sequence[Chat]) -> list[Chat]:
    """The conversations in which the assistant answers something, each up to its last answer.

    Raises DataError where there is none.
    """
    found = []
    for chat in chats:
        answers = [place for place, message in enumerate(chat.messages) if message.role == "assistant" and place]
        if answers:
            found.append(chat.model_copy(update={"messages": chat.messages[: answers[-1] + 1]}))
    if not found:
        raise DataError(
            f"none of {len(chats)} conversations has an answer of the assistant to ask for",
            hint="give conversations with user and assistant turns",
        )
    return found


def several_answers(
    model: Transformer,
    chats: Sequence[Chat],
    tokenizer: Tokenizer,
    *,
    temperature: float,
    samples: int,
    max_new_tokens: int,
    seed: int = 0,
    tell: Callable[[int], None] = lambda _done: None,
) -> list[list[str]]:
    """(N, S) answers without prompt and end-of-turn; empty where the prompt fills the context, as nothing follows."""
    prompts = [render_chat(chat.messages[:-1], tokenizer, generation_prompt=True).ids for chat in chats]
    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    found: list[list[str]] = [[""] * samples for _ in chats]
    fitting = [number for number, prompt in enumerate(prompts) if len(prompt) < model.config.context]
    for i in range(0, len(fitting), PROMPTS):
        numbers = fitting[i : i + PROMPTS]
        completions = generate(
            model,
            [prompts[number] for number in numbers],
            sampling,
            stop_ids=tokenizer.stop_ids,
            num_samples=samples,
            seeds=sequence_seeds(seed, [number * samples + one for number in numbers for one in range(samples)]),
        )
        for number, some in zip(numbers, completions, strict=True):
            found[number] = [tokenizer.decode(one.ids) for one in some]
        tell(len(numbers) * samples)
    return found


def is_right(answer: str, wanted: str) -> bool:
    """Exact match of the text, or the same Python literal written otherwise."""
    return answer.strip() == wanted.strip() or same_literal(answer, wanted)
