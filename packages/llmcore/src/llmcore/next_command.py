"""A command line that is told to a person, as that person would type it."""

import os


def as_typed(words: str) -> str:
    """The words, through `uv run` where this command was given so."""
    return f"uv run {words}" if "UV_RUN_RECURSION_DEPTH" in os.environ else words
