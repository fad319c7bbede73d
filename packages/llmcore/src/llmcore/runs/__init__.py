"""Runs from outside: looking at them, comparing them, taking a step again. Nothing here trains; no torch at import."""
