"""`python -m llmreward`, as torchrun starts it."""

from llmreward.cli import main

main()
