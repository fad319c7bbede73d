"""What a language model's bits per byte are measured against: compressors, and a model that knows only frequencies.

uv run tools/rulers.py runs/data/tokens        bits per byte of its held-out text, as JSON
"""

import json
import lzma
import sys
import zlib
from pathlib import Path

import numpy as np
from llmcore.shards import TokenShards
from llmcore.tokenizer import Tokenizer


def measure_rulers(tokens: Path) -> dict[str, float]:
    """Bits per byte of the held-out text by a byte-unigram model of the training text, gzip -9 and xz -9."""
    tokenizer = Tokenizer.load(tokens)
    train, valid = (text_bytes(TokenShards(tokens, split), tokenizer) for split in ("train", "valid"))
    counts = np.bincount(np.frombuffer(train, np.uint8), minlength=256) + 1.0
    bits = -np.log2(counts / counts.sum())
    return {
        "bytes": len(valid),
        "unigram": float(bits[np.frombuffer(valid, np.uint8)].mean()),
        "gzip -9": 8 * len(zlib.compress(valid, level=9, wbits=31)) / len(valid),
        "xz -9": 8 * len(lzma.compress(valid, preset=9)) / len(valid),
    }


def text_bytes(shards: TokenShards, tokenizer: Tokenizer) -> bytes:
    """The text of a split."""
    return tokenizer.decode_bytes(shards.read(0, len(shards)).tolist())


if __name__ == "__main__":
    print(json.dumps(measure_rulers(Path(sys.argv[1]))))
