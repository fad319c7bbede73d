"""Steps of supervised fine-tuning: texts of mixed length, from llmsft's source, by its loss and `fit`'s step."""

import argparse
import random
import statistics
import string
from functools import partial

from llama_shape import Figures, model_config
from stopwatch import timed

END, PAD = 256, 257
"""What follows a text's bytes, and what fills a row."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, default=8, help="texts of a step; default 8")
    parser.add_argument("--steps", type=int, default=12, help="timed steps, one epoch; default 12")
    parser.add_argument("--warmup", type=int, default=3, help="steps before them; default 3")
    parser.add_argument("--min-chars", type=int, default=32, help="bytes of the shortest text; default 32")
    parser.add_argument("--max-chars", type=int, default=256, help="bytes of the longest text; default 256")
    parser.add_argument("--packing", action="store_true", help="pack the texts of a step; else they are sorted")
    parser.set_defaults(vocab=259)


def measure(options: argparse.Namespace) -> Figures:
    """Real tokens a second over a whole epoch: sorted batches differ too much for a median to stand for them."""
    from llmcore.chat import Rendered
    from llmcore.train.config import TrainConfig
    from llmcore.train.device import place, resolve
    from llmcore.train.loop import train_step
    from llmcore.train.optim import AdamW
    from llmsft.batches import ChatBatches
    from llmsft.loss import sft_loss
    from llmsft.packing import relative_pair_cost

    model = model_config(options, context=options.seq).build(seed=options.seed)
    place(model, resolve("cpu", options.dtype))
    optimizer = AdamW().build(model, 3e-4)
    words = random.Random(options.seed)
    rows = [
        Rendered(ids, [False, *[True] * (len(ids) - 1)])
        for ids in (text(words, options) for _ in range(options.batch * options.steps))
    ]
    source = ChatBatches(
        rows,
        pad_id=PAD,
        train=TrainConfig(batch=options.batch, seed=options.seed),
        pair_cost=relative_pair_cost(model.config) if options.packing else None,
        max_length=options.seq,
    )
    loss = sft_loss("nll")
    times, read = [], 0
    for step in range(-options.warmup, options.steps):
        elapsed, batches = timed(partial(source.micro_batches, step % options.steps))
        seconds, _ = timed(partial(train_step, model, optimizer, batches, loss, clip=1.0))
        if step >= 0:
            times.append(elapsed + seconds)
            read += sum(batch.ids.numel() for batch in batches)
    real = sum(len(row.ids) for row in rows)
    return {
        "metric": "tokens_per_s",
        "tokens_per_s": round(real / sum(times), 1),
        "real_share": round(real / read, 3),
        "padded_tokens_per_s": round(read / sum(times), 1),
        "step_s": round(statistics.mean(times), 3),
        "packing": options.packing,
        "chars": [options.min_chars, options.max_chars],
    }


def text(words: random.Random, options: argparse.Namespace) -> list[int]:
    """The bytes of random words and their end, no longer than a row."""
    letters = string.ascii_lowercase + " " * 6
    count = words.randint(options.min_chars, options.max_chars)
    return [*"".join(words.choices(letters, k=count)).encode(), END][: options.seq]
