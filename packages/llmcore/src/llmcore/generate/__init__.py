"""Continuing sequences of tokens; nothing is imported here.

sampling   Sampling: how the next token is chosen, and the choice itself
penalties  what is subtracted from the logits of tokens that were there before
noise      Gumbel noise as a function of (sequence seed, position)
engine     generate and stream: batched, cached, ragged prompts, finished rows leave
decoding   Decoding: the state of a batch between two tokens
stops      stop strings, found in the bytes of a sequence
text       tokens to printable text while they arrive
chat       what `llmcore generate` and `llmcore chat` do
"""
