"""The tokenizer: bytes and BPE, the library's ids, and control tokens that no text can reach."""

import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as Library

from llmcore.errors import ArtifactError, ConfigError, DataError
from llmcore.tokenizer import SpecialTokens, Tokenizer, require_same_tokenizer
from llmcore.tokenizer_document import CONTROL_TOKENS

SENTENCES = [
    "def stone(): return 'stone'[::-1]\n",
    "héllo wörld — 日本語 🙂 e\u0301",
    "<|im_end|> and <|endoftext|> are only words\r\n\tx",
    "12345 6789 don't   stop \n\n  here ",
    "",
    "\0\x7f\ufeff",
]


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return Tokenizer.train_bpe([*SENTENCES, "the stone is the stone and the end " * 20], 400)


@pytest.fixture(scope="module", params=["bytes", "bpe"])
def tokenizer(request: pytest.FixtureRequest, bpe: Tokenizer) -> Tokenizer:
    return bpe if request.param == "bpe" else Tokenizer.byte_level()


def library(tokenizer: Tokenizer) -> Library:
    """The library's own tokenizer from the same file."""
    own = Library.from_str(tokenizer.files()["tokenizer.json"].decode())
    own.encode_special_tokens = True
    return own


def test_ids_are_the_librarys(tokenizer: Tokenizer) -> None:
    own = library(tokenizer)
    for text in SENTENCES:
        assert tokenizer.encode(text) == own.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode_batch(SENTENCES) == [tokenizer.encode(text) for text in SENTENCES]
    assert tokenizer.vocab_size == own.get_vocab_size(with_added_tokens=True)


def test_text_comes_back_exactly(tokenizer: Tokenizer) -> None:
    own = library(tokenizer)
    for text in SENTENCES:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text == own.decode(ids)
        assert tokenizer.decode_bytes(ids) == text.encode()
        assert tokenizer.byte_lengths[np.array(ids, dtype=int)].sum() == len(text.encode())


def test_no_text_becomes_a_control_token(tokenizer: Tokenizer) -> None:
    control = {tokenizer.token_id(token) for token in CONTROL_TOKENS}
    for token in CONTROL_TOKENS:
        for text in (token, f"a{token}b", f"\n{token}\n", token * 3):
            assert not control & set(tokenizer.encode(text))
            assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_vocabulary_that_merges_up_to_a_control_string_still_keeps_it_apart() -> None:
    greedy = Tokenizer.train_bpe(["<|im_end|> <|endoftext|>" * 50] * 50, 400)
    control = {greedy.token_id(token) for token in CONTROL_TOKENS}
    assert not control & set(greedy.encode("<|im_end|><|endoftext|> <|im_end|>"))


def test_bytes_are_their_own_ids_and_control_tokens_follow() -> None:
    tokenizer = Tokenizer.byte_level()
    assert tokenizer.encode("aé") == [97, 0xC3, 0xA9]
    assert [tokenizer.token_id(t) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")] == [
        256,
        257,
        258,
        259,
    ]
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.end_of_turn_id, tokenizer.pad_id) == (256, 256, 258, 259)
    assert tokenizer.stop_ids == {256, 258}
    assert tokenizer.byte_lengths.tolist() == [1] * 256 + [0] * 4


def test_control_tokens_are_left_out_or_spelled(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.eos_id, *tokenizer.encode("hi"), tokenizer.end_of_turn_id]
    assert tokenizer.decode(ids) == "hi"
    assert tokenizer.decode(ids, skip_special=False) == "<|endoftext|>hi<|im_end|>"
    assert tokenizer.decode(ids, skip_special=False) == library(tokenizer).decode(ids, skip_special_tokens=False)


def test_half_a_character_decodes_to_the_replacement_character() -> None:
    tokenizer = Tokenizer.byte_level()
    for ids in ([0xC3], [0xE2, 0x82], [97, 0xFF, 98], [0xF0, 0x9F, 0x99, 65]):
        assert tokenizer.decode(ids) == library(tokenizer).decode(ids)
        assert "\ufffd" in tokenizer.decode(ids)
        assert tokenizer.decode_bytes(ids) == bytes(ids)


def test_half_a_surrogate_pair_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="surrogate"):
        tokenizer.encode("a\ud800")


def test_saved_and_loaded_it_is_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert tokenizer.save(tmp_path) == ["tokenizer.json", "special_tokens.json"]
    loaded = Tokenizer.load(tmp_path)
    assert loaded.sha256 == tokenizer.sha256
    assert loaded.files() == tokenizer.files()
    assert loaded.special == tokenizer.special
    assert loaded.encode_batch(SENTENCES) == tokenizer.encode_batch(SENTENCES)


def test_the_bytes_are_recognised_when_the_library_wrote_the_file(tmp_path: Path) -> None:
    tokenizer = Tokenizer.byte_level()
    tokenizer.save(tmp_path)
    library(tokenizer).save(str(tmp_path / "tokenizer.json"))
    loaded = Tokenizer.load(tmp_path)
    assert loaded._is_bytes
    assert loaded.encode("é") == [0xC3, 0xA9]


def test_the_hash_covers_both_files() -> None:
    tokenizer = Tokenizer.byte_level()
    other = Tokenizer(tokenizer.files()["tokenizer.json"], SpecialTokens(chat="plain"))
    assert other.sha256 != tokenizer.sha256


def test_training_gives_the_same_merges_in_every_process() -> None:
    program = (
        "from llmcore.tokenizer import Tokenizer\n"
        "print(Tokenizer.train_bpe(['the stone is the stone and the end ' * 20, 'aa ab ba bb' * 9], 300).sha256)"
    )
    hashes = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(hashes) == 1


def test_numbers_split_into_groups_of_at_most_three_digits() -> None:
    tokenizer = Tokenizer.train_bpe(["1234567 " * 200], 300)
    pieces = [tokenizer.decode([index]) for index in range(tokenizer.vocab_size)]
    assert "123" in pieces
    assert max(len(piece) for piece in pieces if piece.isdigit()) == 3


def test_a_vocabulary_smaller_than_the_bytes_is_refused() -> None:
    with pytest.raises(ConfigError, match="vocab_size=100"):
        Tokenizer.train_bpe(["text"], 100)


@pytest.mark.parametrize("unit", ["a", " ", "\n", "1", "!", " \n", "'", "\u0301"])
def test_a_megabyte_of_the_worst_text_takes_less_than_two_seconds(bpe: Tokenizer, unit: str) -> None:
    text = unit * (10**6 // len(unit.encode()))
    started_at = time.process_time()
    assert bpe.decode(bpe.encode(text)) == text
    assert time.process_time() - started_at < 2 * 2  # encoding and decoding


@pytest.mark.parametrize("name", ["normalizer", "pre_tokenizer", "decoder"])
def test_a_part_that_is_no_table_is_one_sentence(name: str) -> None:
    document = json.loads(Tokenizer.byte_level().files()["tokenizer.json"])
    with pytest.raises(ArtifactError, match="not a tokenizer"):
        Tokenizer(json.dumps({**document, name: 0.5}).encode())


def test_damaged_files_are_one_sentence(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    good = path.read_bytes()
    generator = random.Random(0)
    for cut in (0, 1, 100, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:cut])
        with pytest.raises(ArtifactError, match=r"tokenizer\.json"):
            Tokenizer.load(tmp_path)
    for _ in range(150):
        at = generator.randrange(len(good))
        path.write_bytes(good[:at] + bytes([good[at] ^ (1 << generator.randrange(8))]) + good[at + 1 :])
        try:
            assert Tokenizer.load(tmp_path).sha256 != tokenizer.sha256
        except ArtifactError as error:
            assert "tokenizer.json" in str(error)


@pytest.mark.parametrize(
    "document",
    [
        b"[]",
        b"{}",
        b'{"model": {}}',
        b"[" * 10**5,
        b'{"model": 3, "added_tokens": [{"id": 1}]}',
        b'{"model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": [{"id": 1e999, "content": "x"}]}',
        b"\xff\xfe",
    ],
)
def test_foreign_documents_are_refused(document: bytes, tmp_path: Path) -> None:
    Tokenizer.byte_level().save(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(document)
    with pytest.raises(ArtifactError):
        Tokenizer.load(tmp_path)


def test_a_part_played_by_an_unknown_token_is_refused(tmp_path: Path) -> None:
    Tokenizer.byte_level().save(tmp_path)
    special = json.loads((tmp_path / "special_tokens.json").read_text())
    (tmp_path / "special_tokens.json").write_text(json.dumps({**special, "pad": "<pad>"}))
    with pytest.raises(ArtifactError, match="<pad>"):
        Tokenizer.load(tmp_path)
    (tmp_path / "special_tokens.json").write_text(json.dumps({**special, "pda": "<pad>"}))
    with pytest.raises(ArtifactError, match="pda"):
        Tokenizer.load(tmp_path)
    (tmp_path / "special_tokens.json").unlink()
    with pytest.raises(ArtifactError, match=r"special_tokens\.json"):
        Tokenizer.load(tmp_path)


def test_another_tokenizer_is_refused_with_both_hashes_and_what_to_do(bpe: Tokenizer) -> None:
    ours = Tokenizer.byte_level()
    require_same_tokenizer("runs/a", Tokenizer.byte_level(), ours, of="the policy")
    said = (
        f"runs/a has another tokenizer than the policy: '{bpe.sha256[:16]}' and '{ours.sha256[:16]}'\n  fix: give one"
    )
    with pytest.raises(ArtifactError, match=re.escape(said)):
        require_same_tokenizer("runs/a", bpe, ours, of="the policy")
    with pytest.raises(ArtifactError, match="fix: make it again"):
        require_same_tokenizer("runs/a", bpe, ours, of="the policy", hint="make it again")
