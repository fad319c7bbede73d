"""Randomness as a function of (seed, step): a run that goes on needs no random state."""

import hashlib


def step_seed(seed: int, step: int, *, rank: int = 0) -> int:
    """The seed of all randomness inside one step, on one of the processes that train together."""
    words = f"{seed} {step} {rank}" if rank else f"{seed} {step}"
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest()) >> 1
