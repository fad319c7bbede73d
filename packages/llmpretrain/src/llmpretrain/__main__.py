"""`python -m llmpretrain`, as torchrun starts it."""

from llmpretrain.cli import main

main()
