"""tokenizer.json, the format of the `tokenizers` library: read with care; written for bytes and for learned merges."""

import json
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from llmcore.errors import ArtifactError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as LibraryTokenizer

COMPONENTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")

# GPT-4's split with numbers in groups of at most three digits: each alternative starts with a disjoint or a shrinking
# set of characters, so matching stays linear in the text.
SPLIT = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def parse_document(document: bytes) -> dict[str, Any]:
    """A tokenizer.json as nested dictionaries, with the few facts that are read from it checked."""
    try:
        parsed = json.loads(document)
        added = parsed.get("added_tokens") or []
        contents = {str(token["content"]): int(token["id"]) for token in added}
    except (ValueError, OverflowError, RecursionError, AttributeError, TypeError, KeyError) as error:
        raise damaged(f"{type(error).__name__}: {error}") from None
    if not isinstance(parsed.get("model"), dict) or len(set(contents.values())) != len(added):
        raise damaged("it has no model, or two control tokens share an id")
    if not all(isinstance(parsed.get(name) or {}, dict) for name in COMPONENTS):
        raise damaged(f"one of {', '.join(COMPONENTS)} is no table")
    if any(not 0 <= index < 2**24 for index in contents.values()):
        raise damaged("a control token's id is out of range")
    return dict(parsed)


def is_byte_level(parsed: dict[str, Any]) -> bool:
    """Whether ids 0..255 are the bytes and nothing else happens to text, so that the library can be left out."""
    model = parsed["model"]
    pre = parsed.get("pre_tokenizer") or {}
    return (
        model.get("type") == "BPE"
        and not model.get("merges")
        and model.get("vocab") == {character: value for value, character in enumerate(byte_characters())}
        and not any(model.get(key) for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"))
        and parsed.get("normalizer") is None
        and (pre.get("type"), pre.get("add_prefix_space"), pre.get("use_regex")) == ("ByteLevel", False, False)
        and (parsed.get("decoder") or {}).get("type") == "ByteLevel"
        and bool(parsed.get("added_tokens"))
        and all(token.get("special") and int(token["id"]) >= 256 for token in parsed["added_tokens"])
    )


def byte_level_document() -> bytes:
    """The tokenizer.json of bytes, written here so that its hash does not depend on the library's version."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    document: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": 256 + index,
                "content": content,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for index, content in enumerate(CONTROL_TOKENS)
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {character: value for value, character in enumerate(byte_characters())},
            "merges": [],
        },
    }
    return json.dumps(document, ensure_ascii=False).encode()


def train_document(texts: Iterable[str], vocab_size: int) -> bytes:
    """The tokenizer.json of byte-pair merges learned from texts."""
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Library

    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    library.decoder = decoders.ByteLevel()
    # Control tokens join after training: they are then no part of the merges' vocabulary, and no text can reach them.
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(CONTROL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(texts, trainer)
    library.add_special_tokens([AddedToken(content, normalized=False) for content in CONTROL_TOKENS])
    return bytes(library.to_str(pretty=False), "utf-8")


def open_library(document: bytes) -> "LibraryTokenizer":
    """Build the library's tokenizer; what it says of a file it cannot use becomes one sentence."""
    from tokenizers import Tokenizer as Library

    try:
        library = Library.from_str(document.decode("utf-8"))
        library.encode_special_tokens = True
        library.no_truncation()
        library.no_padding()
        library.encode("a 1\n", add_special_tokens=False)
    except Exception as error:
        raise damaged(str(error)) from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise damaged(str(error)) from None
    return library


def steps_of(component: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The parts of a normalizer or pre-tokenizer, sequences taken apart."""
    if component is None:
        return []
    inner = component.get("normalizers") or component.get("pretokenizers") or []
    return [component] if component.get("type") != "Sequence" else [one for part in inner for one in steps_of(part)]


def piece_bytes(token: str, byte_level: bool) -> bytes:
    """The bytes that a vocabulary entry stands for."""
    if byte_level:
        try:
            return bytes(BYTE_OF[character] for character in token)
        except KeyError:
            return token.encode()
    fallback = re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", token)
    return bytes([int(fallback[1], 16)]) if fallback else token.replace("▁", " ").encode()


def byte_characters() -> list[str]:
    """The printable character that stands for each byte in a byte-level vocabulary (GPT-2's table)."""
    shown = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = [value for value in range(256) if value not in shown]
    return [chr(value) if value in shown else chr(256 + hidden.index(value)) for value in range(256)]


BYTE_OF = {character: value for value, character in enumerate(byte_characters())}


def damaged(reason: str) -> ArtifactError:
    return ArtifactError(f"not a tokenizer ({reason})", hint="make it again with llmdata tokenizer")
