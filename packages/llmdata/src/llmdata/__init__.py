"""Text to tokenizers, token shards and records.

Nothing here imports torch. A map of the package:

    cli          llmdata tokenizer | tokens | records
    config       the settings of the three commands
    sources      where text comes from: the standard library, files, folders, globs, JSONL
    bpe          text to a tokenizer
    tokenize     text to token shards
    convert      rows of any common shape, or built-in problems, to records
    expressions  small Python expressions whose answer Python gives: instruction data
    preferences  a right answer against a wrong one
    artifact     an output folder: made once, recognised when it is there already
    builtin      what a stage without data asks for, by entry point
"""
