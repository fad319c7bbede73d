"""`python -m llmmoe`, as torchrun starts it."""

from llmmoe.cli import main

main()
