"""Randomness as a function of (seed, step): a run that goes on needs no random state."""

import hashlib


def step_seed(seed: int, step: int) -> int:
    """The seed of all randomness inside one step."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {step}".encode(), digest_size=8).digest()) >> 1
