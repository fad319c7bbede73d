"""Model, tokenizer, artifacts, the one training loop, and generation.

A map of the package; nothing is imported here, so that `--help` stays fast:

    what everything stands on
    errors       LLMError and its kinds: what a user can mend
    config       Config, load_config: TOML files and dotted overrides
    extensions   Part: what is replaced rather than flagged, found by entry point
    storage      durable writes: temporary name, fsync, rename
    manifest     Manifest: kind, config, family tree, hashes

    text and conversations
    tokenizer    byte-level and BPE; tokenizer_document reads and writes its tokenizer.json
    shards       token shards on disk
    conversations  Chat, Preference, Prompt
    records      the same read and written: rows are of files, shapes those in which people have them
    chat         conversations to token ids and loss mask
    chat_formats ChatML, Llama, Mistral, Gemma …: how each kind of model has conversations written
    literals     answers that are Python literals, compared by value

    models
    model/       the transformer and its parts
    checkpoint   weights + architecture + tokenizer + manifest
    tensors      safetensors files: written durably, mapped, verified over the mapping
    lora         adapters as a part; adapters keeps them on disk
    huggingface/ Hugging Face folders, read and written

    learning, speaking, measuring
    batching     ragged rows to padded batches; branches reads what rows share once
    losses       next-token loss and token log-probabilities; objective has their settings
    head         the products behind them, never all logits at once
    train/       fit, optimizers, schedules, the run folder
    generate/    sampling and the generation engine
    scoring      scores of conversations, for every stage
    evaluate/    tasks scored by log-likelihood
    intervals    95 % intervals of what is reported

    in the terminal
    cli          the command `llmcore`
    command      the main of every command-line program here: exit codes and errors; process prepares it
    options      what several commands may be given; next_command is what a person types next
    builtin      data for who has none
    settings_commands  `config show | init | schema`
    runs/        runs on this disk: list, show, compare, plot, replay
    inspection   what an artifact is, for people and for machines
    preview      a text or a conversation, token by token
    doctor       what this machine can do
    launch       a batch script for SLURM
    charts       lines and intervals as SVG
"""
