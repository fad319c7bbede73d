"""Text to shards: whole documents on one side, exact text, honest counts."""

from collections import Counter
from pathlib import Path

import pytest

from llmcore.errors import ArtifactError, DataError
from llmcore.manifest import verify_artifact
from llmcore.shards import TokenShards
from llmcore.tokenizer import Tokenizer
from llmdata.bpe import make_tokenizer
from llmdata.config import TextInputs, TokenizerConfig, TokensConfig
from llmdata.sources import open_source
from llmdata.tokenize import choose_valid, hold_out, make_tokens


def corpus(folder: Path, count: int = 200) -> TextInputs:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        (folder / f"{number}.txt").write_text(f"document {number} says wörld <|endoftext|> " * 3)
    return TextInputs(text=(str(folder),))


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_every_document_is_on_exactly_one_side(tmp_path: Path, kind: str) -> None:
    inputs = corpus(tmp_path / "text")
    if kind == "bpe":
        make_tokenizer(TokenizerConfig(inputs=inputs, vocab_size=300), tmp_path / "tok")
        inputs = inputs.model_copy(update={"tokenizer": str(tmp_path / "tok")})
    manifest = make_tokens(TokensConfig(inputs=inputs), tmp_path / "out").manifest
    tokenizer = Tokenizer.load(tmp_path / "out")
    sides = {}
    for split in ("train", "valid"):
        shards = TokenShards(tmp_path / "out", split, tokenizer=tokenizer)
        ids = shards.read(0, len(shards)).tolist()
        ends = [at for at, index in enumerate(ids) if index == tokenizer.eos_id]
        starts = [0, *(end + 1 for end in ends[:-1])]
        sides[split] = {tokenizer.decode(ids[start:end]) for start, end in zip(starts, ends, strict=True)}
        assert len(ends) == shards.documents == manifest.counts[f"{split}_documents"]
        assert shards.bytes == sum(len(text.encode()) for text in sides[split])
    assert not sides["train"] & sides["valid"]
    expected = {path.read_text() for path in (tmp_path / "text").iterdir()}
    assert sides["train"] | sides["valid"] == expected
    share = manifest.counts["valid_bytes"] / (manifest.counts["valid_bytes"] + manifest.counts["train_bytes"])
    assert 0.04 < share < 0.07
    assert verify_artifact(tmp_path / "out", expect="tokens") == manifest
    assert set(manifest.parents) == ({"text", "tokenizer"} if kind == "bpe" else {"text"})


def test_equal_documents_stay_together(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    for number in range(100):
        (tmp_path / "text" / f"{number}.txt").write_text(f"one of ten: {number % 10}")
    config = TokensConfig(inputs=TextInputs(text=(str(tmp_path / "text"),)), valid_fraction=0.2)
    counts = make_tokens(config, tmp_path / "out").manifest.counts
    assert counts["valid_documents"] == 20
    assert counts["train_documents"] == 80


def test_held_out_is_the_wanted_share_and_never_nothing_or_all() -> None:
    sizes = Counter({f"{number:02}": 10 for number in range(100)})
    assert len(hold_out(sizes, 0.05)) == 5
    assert hold_out(Counter({"a": 100, "b": 5, "c": 100}), 0.05) == {"b"}
    assert hold_out(Counter({"a": 100, "b": 90}), 0.05) == {"b"}


def test_the_same_inputs_are_recognised_and_others_refused(tmp_path: Path) -> None:
    config = TokensConfig(inputs=corpus(tmp_path / "text", 20))
    first = make_tokens(config, tmp_path / "out")
    again = make_tokens(config, tmp_path / "out")
    assert (first.existed, again.existed) == (False, True)
    assert again.manifest == first.manifest
    with pytest.raises(ArtifactError, match=r"holds another run: valid_fraction=0\.05 \(now 0\.2\)"):
        make_tokens(config.model_copy(update={"valid_fraction": 0.2}), tmp_path / "out")
    (tmp_path / "text" / "0.txt").write_text("changed")
    with pytest.raises(ArtifactError, match="other inputs"):
        make_tokens(config, tmp_path / "out")


def test_two_runs_have_one_id(tmp_path: Path) -> None:
    config = TokensConfig(inputs=corpus(tmp_path / "text", 20))
    ids = {make_tokens(config, tmp_path / name).manifest.id for name in ("a", "b")}
    assert len(ids) == 1


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".tmp-out-999999999"
    left.mkdir()
    make_tokens(TokensConfig(inputs=corpus(tmp_path / "text", 20)), tmp_path / "out")
    assert not left.exists()
    assert not list(tmp_path.glob(".tmp-*"))


def test_text_that_cannot_be_split_is_refused(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("x")
    with pytest.raises(DataError, match="too little text"):
        make_tokens(TokensConfig(inputs=TextInputs(text=(str(tmp_path / "one.txt"),))), tmp_path / "out")
    (tmp_path / "one.txt").write_text(" \n")
    with pytest.raises(DataError, match="no text"):
        make_tokens(TokensConfig(inputs=TextInputs(text=(str(tmp_path / "one.txt"),))), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_dropped_is_a_share_of_the_bytes_not_of_the_characters(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number:02}.txt").write_text(chr(0x4E00 + number) * 100)  # 300 bytes each
    (tmp_path / "latin.txt").write_bytes(b"\xe9" * 50)
    source = open_source([str(tmp_path)])._replace(optional=True)
    allowed = TokensConfig(max_dropped=0.01)
    assert choose_valid(source, allowed)[1] == {"dropped_not_utf8_bytes": 50}  # 50 of 6,050 bytes, of 2,000 characters
    with pytest.raises(DataError, match=r"50 of 6,050 bytes would be dropped"):
        choose_valid(source, TokensConfig(max_dropped=0.005))
