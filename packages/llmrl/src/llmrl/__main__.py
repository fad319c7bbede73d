"""`python -m llmrl`, as torchrun starts it."""

from llmrl.cli import main

main()
