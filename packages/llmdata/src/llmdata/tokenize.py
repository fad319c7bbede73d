"""Text to token shards, train and valid: whole documents fall on one side by their hash."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from llmcore.errors import DataError
from llmcore.manifest import Manifest, verify_artifact
from llmcore.shards import ShardWriter, write_index
from llmcore.tokenizer import Tokenizer
from llmdata.artifact import Content, Made, make_artifact, refuse_losses
from llmdata.config import TokensConfig
from llmdata.sources import Document, Source, open_source, read_documents

BATCH = 2**22  # characters encoded at a time


def make_tokens(config: TokensConfig, out: Path) -> Made:
    """Encode text and write its shards to `out`."""
    source = open_source(config.inputs.text)
    tokenizer, parents = Tokenizer.byte_level(), {"text": source.manifest}
    if config.inputs.tokenizer is not None:
        tokenizer, parents["tokenizer"] = open_tokenizer(Path(config.inputs.tokenizer))

    def write(folder: Path) -> Content:
        held_out, counts = choose_valid(source, config)
        writers = {split: ShardWriter(folder, split, tokenizer) for split in ("train", "valid")}
        for batch in batches(documents(source, config)):
            for document, ids in zip(batch, tokenizer.encode_batch([d.text for d in batch]), strict=True):
                split = "valid" if document.digest in held_out else "train"
                writers[split].add(ids, text_bytes=len(document.text.encode()))
        splits = {split: writer.close() for split, writer in writers.items()}
        for split, entry in splits.items():
            counts |= {f"{split}_documents": entry.documents, f"{split}_tokens": entry.tokens}
            counts |= {f"{split}_bytes": entry.bytes}
        return Content([*tokenizer.save(folder), *write_index(folder, tokenizer, splits)], counts)

    return make_artifact(out, write, kind="tokens", made_by="llmdata tokens", config=config, parents=parents)


def open_tokenizer(folder: Path) -> tuple[Tokenizer, Manifest]:
    """A tokenizer from any artifact that carries one, and that artifact's manifest as a parent."""
    manifest = verify_artifact(folder)
    return Tokenizer.load(folder), manifest


def documents(source: Source, config: TokensConfig, dropped: Counter[str] | None = None) -> Iterator[Document]:
    counter: Counter[str] = Counter() if dropped is None else dropped
    return read_documents(source, mapping=config.map, separator=config.separator, dropped=counter)


def choose_valid(source: Source, config: TokensConfig) -> tuple[set[str], dict[str, int]]:
    """The hashes of the documents to hold out, about the wanted share of the text; and what was dropped."""
    dropped: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    kept = 0
    for document in documents(source, config, dropped):
        sizes[document.digest] += len(document.text)
        kept += len(document.text.encode("utf-8", "surrogatepass"))
    if not sizes:
        raise DataError("there is no text to encode", hint="name files that hold text")
    if len(sizes) < 2:
        raise DataError("there is too little text for a train and a valid part", hint="name more text")
    refuse_losses(dropped, kept + sum(dropped.values()), config.max_dropped, "bytes")
    counts = {f"dropped_{name}_bytes": count for name, count in dropped.items()}
    return hold_out(sizes, config.valid_fraction), counts


def hold_out(sizes: Counter[str], fraction: float) -> set[str]:
    """Documents in the order of their hashes until the share is reached, large ones passed over; at least one."""
    target = fraction * sum(sizes.values())
    chosen: set[str] = set()
    taken = 0
    for digest in sorted(sizes):
        if taken >= target:
            break
        if taken + sizes[digest] <= 1.5 * target:
            chosen.add(digest)
            taken += sizes[digest]
    return chosen or {min(sizes, key=lambda digest: (sizes[digest], digest))}


def batches(items: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents in groups of about `BATCH` characters."""
    batch: list[Document] = []
    size = 0
    for item in items:
        batch.append(item)
        size += len(item.text)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
