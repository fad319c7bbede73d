"""`python -m llmcore`, as torchrun starts it."""

from llmcore.cli import main

main()
