"""Model, tokenizer, artifacts, the one training loop, and generation.

A map of the package; nothing is imported here, so that `--help` stays fast:

    errors       LLMError and its kinds: what a user can mend
    config       Config, load_config: TOML files and dotted overrides
    extensions   Part: what is replaced rather than flagged, found by entry point
    storage      durable writes: temporary name, fsync, rename
    manifest     Manifest: kind, config, family tree, hashes
    conversations  Chat, Preference, Prompt
    records      the same read and written: rows of files, in the shapes people have
    tokenizer    byte-level and BPE
    chat         conversations to token ids and loss mask
    chat_formats ChatML, Llama, Mistral, Gemma …: how each kind of model has conversations written
    shards       token shards on disk
    tensors      safetensors files: written durably, mapped, verified over the mapping
    checkpoint   weights + architecture + tokenizer + manifest
    losses       next-token loss and token log-probabilities, never all logits at once
    model/       the transformer and its parts
    generate/    sampling and the generation engine
    evaluate/    tasks scored by log-likelihood
    huggingface/ Hugging Face folders, read and written
    train/       fit, optimizers, schedules, the run folder
    command      what every command-line program here shares
    inspection   what an artifact is, for people and for machines
    preview      a text or a conversation, token by token
    cli          the command `llmcore`
"""
