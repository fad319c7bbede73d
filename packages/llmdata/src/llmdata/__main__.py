"""`python -m llmdata`, as torchrun starts it."""

from llmdata.cli import main

main()
