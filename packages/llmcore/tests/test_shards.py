"""Token shards: what was written comes back, and damage is found."""

import random
from pathlib import Path

import numpy as np
import pytest

from llmcore.errors import ArtifactError, ConfigError
from llmcore.shards import DATA_OFFSET, ShardWriter, TokenShards, write_index
from llmcore.tokenizer import SpecialTokens, Tokenizer

BYTES = Tokenizer.byte_level()
DOCUMENTS = ["hello", "wörld", "a much longer third document", ""]


def write(folder: Path, *, shard_tokens: int = 2**26, tokenizer: Tokenizer = BYTES) -> list[int]:
    """A tokens folder with equal train and valid splits; the ids that each holds."""
    splits = {}
    for split in ("train", "valid"):
        writer = ShardWriter(folder, split, tokenizer, shard_tokens=shard_tokens)
        for text in DOCUMENTS:
            writer.add(tokenizer.encode(text))
        splits[split] = writer.close()
    write_index(folder, tokenizer, splits)
    return [index for text in DOCUMENTS for index in [*tokenizer.encode(text), tokenizer.eos_id]]


@pytest.mark.parametrize("shard_tokens", [2**26, 7, 1])
def test_what_was_written_is_read_across_shards(tmp_path: Path, shard_tokens: int) -> None:
    ids = write(tmp_path, shard_tokens=shard_tokens)
    shards = TokenShards(tmp_path, "train", tokenizer=BYTES)
    assert len(list(tmp_path.glob("train-*.bin"))) == -(-len(ids) // shard_tokens)
    assert len(shards) == len(ids)
    for start in range(len(ids)):
        for count in range(len(ids) - start + 1):
            part = shards.read(start, count)
            assert part.tolist() == ids[start : start + count]
            assert part.dtype == np.int64


def test_windows_are_rows_of_reads(tmp_path: Path) -> None:
    ids = write(tmp_path, shard_tokens=5)
    rows = TokenShards(tmp_path, "valid").windows(np.array([3, 0, 11]), 9)
    assert rows.shape == (3, 9)
    assert rows.dtype == np.int64
    assert rows.tolist() == [ids[start : start + 9] for start in (3, 0, 11)]


def test_it_counts_documents_and_bytes_of_text(tmp_path: Path) -> None:
    write(tmp_path, shard_tokens=7)
    shards = TokenShards(tmp_path, "train")
    assert shards.documents == len(DOCUMENTS)
    assert shards.bytes == sum(len(text.encode()) for text in DOCUMENTS)
    assert shards.vocab_size == 260
    assert shards.tokenizer_sha256 == BYTES.sha256


def test_two_bytes_an_id_where_they_suffice_else_four(tmp_path: Path) -> None:
    class Huge(Tokenizer):
        """Bytes with a vocabulary of a size that two bytes cannot hold."""

    for size, width in ((2**16, 2), (2**16 + 1, 4)):
        tokenizer = Huge(BYTES.files()["tokenizer.json"])
        tokenizer.vocab_size = size
        folder = tmp_path / str(size)
        folder.mkdir()
        writer = ShardWriter(folder, "train", tokenizer)
        ids = [0, 5, size - 1]
        writer.add(ids, text_bytes=3)
        write_index(folder, tokenizer, {"train": writer.close()})
        assert (folder / "train-00000.bin").stat().st_size == DATA_OFFSET + 4 * width
        assert TokenShards(folder, "train").read(0, 3).tolist() == ids


def test_ids_outside_the_vocabulary_are_not_written(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "train", BYTES)
    with pytest.raises(AssertionError, match="260"):
        writer.add([1, 260])
    with pytest.raises(AssertionError, match="-1"):
        writer.add([-1])
    assert writer.close().tokens == 0


def test_another_tokenizer_of_the_same_size_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    other = Tokenizer(BYTES.files()["tokenizer.json"], SpecialTokens(chat="plain"))
    with pytest.raises(ArtifactError, match="another tokenizer"):
        TokenShards(tmp_path, "train", tokenizer=other)


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    ids = write(tmp_path)
    generator = random.Random(0)
    for path in (tmp_path / "train-00000.bin", tmp_path / "tokens.json"):
        good = path.read_bytes()
        for at in range(len(good)):
            path.write_bytes(good[:at] + bytes([good[at] ^ (1 << generator.randrange(8))]) + good[at + 1 :])
            try:
                shards = TokenShards(tmp_path, "train", tokenizer=BYTES)
            except (ArtifactError, ConfigError):
                continue
            assert path.name == "tokens.json", at  # white space, or the other split
            assert shards.read(0, len(shards)).tolist() == ids
        path.write_bytes(good)


def test_cut_or_missing_files_are_named(tmp_path: Path) -> None:
    write(tmp_path, shard_tokens=7)
    path = tmp_path / "train-00001.bin"
    good = path.read_bytes()
    for size in (0, 10, DATA_OFFSET, len(good) - 1):
        path.write_bytes(good[:size])
        with pytest.raises(ArtifactError, match=r"train-00001\.bin"):
            TokenShards(tmp_path, "train")
    path.write_bytes(good + b"x")
    with pytest.raises(ArtifactError, match=r"train-00001\.bin"):
        TokenShards(tmp_path, "train")
    path.unlink()
    with pytest.raises(ArtifactError, match=r"train-00001\.bin"):
        TokenShards(tmp_path, "train")
    with pytest.raises(ArtifactError, match=r"no token shards"):
        TokenShards(tmp_path / "nowhere", "train")


def test_files_outside_the_folder_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "tokens.json"
    path.write_text(path.read_text().replace("train-00000.bin", "../train-00000.bin"))
    with pytest.raises(ArtifactError, match="not a file name"):
        TokenShards(tmp_path, "train")


def test_an_unknown_split_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(ConfigError, match="train, valid"):
        TokenShards(tmp_path, "test")
