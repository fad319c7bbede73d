"""The prompts that a policy answers, to find the scale of a reward or to try terms on."""

from collections.abc import Sequence

from llmcore.chat import render_chat
from llmcore.records import Preference
from llmcore.tokenizer import Tokenizer
from llmreward.config import Normalization


def prompts_to_answer(
    records: Sequence[Preference], tokenizer: Tokenizer, *, settings: Normalization, context: int
) -> list[list[int]]:
    """Distinct training prompts, spread evenly over the data; long ones lose their beginning."""
    distinct = list(dict.fromkeys(record.prompt for record in records))
    count = min(settings.prompts, len(distinct))
    room = context - longest_answer(settings, context)
    chosen = [distinct[number * len(distinct) // count] for number in range(count)]
    return [render_chat(prompt, tokenizer, generation_prompt=True).ids[-room:] for prompt in chosen]


def longest_answer(settings: Normalization, context: int) -> int:
    """New tokens to sample: at least half of the context is left to the prompt."""
    return min(settings.max_new_tokens, context // 2)
