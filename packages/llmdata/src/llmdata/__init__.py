"""Text to tokenizers, token shards and records."""
