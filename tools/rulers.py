"""What a language model's bits per byte are measured against: compressors, and a model that knows only frequencies.

uv run tools/rulers.py runs/data/tokens        bits per byte of its held-out text, as JSON
"""

import json
import lzma
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from llmcore.shards import TokenShards
from llmcore.tokenizer import Tokenizer

PIECE = 1 << 18  # tokens decoded at a time


def measure_rulers(tokens: Path) -> dict[str, float]:
    """Bits per byte of the held-out text by a byte-unigram model of the training text, gzip -9 and xz -9."""
    tokenizer = Tokenizer.load(tokens)
    valid = b"".join(text_pieces(TokenShards(tokens, "valid"), tokenizer))
    counts = np.ones(256)
    for piece in text_pieces(TokenShards(tokens, "train"), tokenizer):
        counts += np.bincount(np.frombuffer(piece, np.uint8), minlength=256)
    bits = -np.log2(counts / counts.sum())
    return {
        "bytes": len(valid),
        "unigram": float(bits[np.frombuffer(valid, np.uint8)].mean()),
        "gzip -9": 8 * len(zlib.compress(valid, level=9, wbits=31)) / len(valid),
        "xz -9": 8 * len(lzma.compress(valid, preset=9)) / len(valid),
    }


def text_pieces(shards: TokenShards, tokenizer: Tokenizer) -> Iterator[bytes]:
    """The text of a split, a part at a time."""
    for start in range(0, len(shards), PIECE):
        yield tokenizer.decode_bytes(shards.read(start, min(PIECE, len(shards) - start)).tolist())


if __name__ == "__main__":
    print(json.dumps(measure_rulers(Path(sys.argv[1]))))
