"""`python -m llmsft`, as torchrun starts it."""

from llmsft.cli import main

main()
