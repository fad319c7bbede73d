"""Steps of a reward model: pairs of texts of mixed length, from llmreward's source, by its loss and `fit`'s step."""

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
    parser.add_argument("--batch", type=int, default=8, help="pairs of a step; default 8")
    parser.add_argument("--steps", type=int, default=12, help="timed steps, one epoch; default 12")
    parser.add_argument("--warmup", type=int, default=3, help="steps before them; default 3")
    parser.add_argument("--min-chars", type=int, default=32, help="bytes of the shortest text; default 32")
    parser.add_argument("--max-chars", type=int, default=254, help="bytes of the longest text; default 254")
    parser.set_defaults(vocab=259)


def measure(options: argparse.Namespace) -> Figures:
    """Pairs a second over a whole epoch: batches of similar length differ too much for a median to stand for them."""
    from llmcore.train.config import TrainConfig
    from llmcore.train.device import place, resolve
    from llmcore.train.loop import train_step
    from llmcore.train.optim import AdamW
    from llmreward.batches import Comparison, Group, PreferenceBatches
    from llmreward.loss import BradleyTerry, reward_loss

    config = model_config(options, context=options.seq).model_copy(update={"head": "scalar"})
    model = config.build(seed=options.seed)
    place(model, resolve("cpu", options.dtype))
    optimizer = AdamW().build(model, 1e-5)
    words = random.Random(options.seed)
    groups = [
        Group([text(words, options), text(words, options)], [Comparison(0, 1)])
        for _ in range(options.batch * options.steps)
    ]
    train = TrainConfig(batch=options.batch, seed=options.seed)
    source = PreferenceBatches(groups, pad_id=PAD, share=True, train=train)
    loss = reward_loss(BradleyTerry().build())
    times, real, read = [], 0, 0
    for step in range(-options.warmup, options.steps):
        batches = source.micro_batches(step % options.steps)
        elapsed, _ = timed(partial(train_step, model, optimizer, batches, loss, clip=1.0))
        if step >= 0:
            times.append(elapsed)
            real += sum(int((batch.layout.trees > 0).sum()) for batch in batches)
            read += sum(batch.ids.numel() for batch in batches)
    return {
        "metric": "pairs_per_s",
        "pairs_per_s": round(len(groups) / sum(times), 2),
        "step_s": round(statistics.mean(times), 3),
        "tokens_per_s": round(real / sum(times), 1),
        "real_share": round(real / read, 3),
        "chars": [options.min_chars, options.max_chars],
    }


def text(words: random.Random, options: argparse.Namespace) -> list[int]:
    """The bytes of random words, and their end."""
    letters = string.ascii_lowercase + " " * 6
    return [*"".join(words.choices(letters, k=words.randint(options.min_chars, options.max_chars))).encode(), END]
