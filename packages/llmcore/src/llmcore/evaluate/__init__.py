"""Scoring by log-likelihood; nothing is imported here.

tasks        task files by their keys: minimal pairs, continuations (last words), multiple choice
options      the options of an item as rows of tokens, and from which token on they are scored
likelihood   log p of the scored tokens, in batches that read what rows share once
benchmark    figures of a task with their intervals, beside chance, per sub-task; what a command prints
passes       pass@k
"""
