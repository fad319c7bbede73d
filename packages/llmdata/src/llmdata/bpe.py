"""Text to a tokenizer: byte-pair merges learned from documents."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from llmcore.errors import DataError
from llmcore.tokenizer import Tokenizer
from llmdata.artifact import Content, Made, make_artifact
from llmdata.config import TokenizerConfig
from llmdata.sources import Source, open_source, read_documents

PIECE = 2**16  # characters handed to the trainer at a time: enough for its threads to share


def make_tokenizer(config: TokenizerConfig, out: Path) -> Made:
    """Learn a tokenizer and write it to `out`."""
    source = open_source(config.inputs.text)

    def write(folder: Path) -> Content:
        counts: Counter[str] = Counter()
        tokenizer = Tokenizer.train_bpe(texts(source, config, counts), config.vocab_size)
        if not counts["bytes"]:
            raise DataError("there is no text to learn from", hint="name files that hold text")
        counts["vocab_size"] = tokenizer.vocab_size
        return Content(tokenizer.save(folder), dict(counts))

    return make_artifact(
        out, write, kind="tokenizer", made_by="llmdata tokenizer", config=config, parents={"text": source.manifest}
    )


def texts(source: Source, config: TokenizerConfig, counts: Counter[str]) -> Iterator[str]:
    """The text in pieces that end at a line, counted."""
    dropped: Counter[str] = Counter()
    for document in read_documents(source, mapping=config.map, separator=config.separator, dropped=dropped):
        counts["documents"] += 1
        counts["bytes"] += len(document.text.encode("utf-8", "surrogatepass"))
        start = 0
        while start < len(document.text):
            end = document.text.find("\n", start + PIECE) + 1 or len(document.text)
            yield document.text[start:end]
            start = end
    counts.update({f"dropped_{name}_bytes": count for name, count in dropped.items()})
