"""Tokenizers of others: the same ids as their own library, in every language, and the same again after an export."""

import json
import unicodedata
import zipfile
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Library

from llmcore.checkpoint import save_model
from llmcore.huggingface.qwen import QWEN_SPLIT
from llmcore.huggingface.settings import Settings
from llmcore.huggingface.vocabulary import read_tokenizer
from llmcore.huggingface.writing import export_hf
from llmcore.manifest import write_manifest
from llmcore.model.config import ModelConfig
from llmcore.tokenizer import SpecialTokens, Tokenizer

DATA = Path(__file__).parents[4] / "shared" / "data"
FILES = {
    "gpt2": "hf_gpt2/tokenizer.json",
    "minimind": "minimind/tokenizer.json",
    "torchtitan": "torchtitan_test/tokenizer.json",
    "torchtune": "torchtune/tiny_bpe_tokenizer.json",
}
LANGUAGES = ("arb", "ben", "amh", "cmn_hans", "fra", "ell_monotonic", "eng", "hin", "jpn", "kor", "rus", "tha")
AWKWARD = [
    "",
    " ",
    "\n\n \t\n",
    "1234567890 3.14159 ٣٤٥ Ⅷ ½",
    "naïve café " + unicodedata.normalize("NFD", "naïve café Việt"),
    "👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301\u0302 ﷽ \u200b\ufeff",
    "don't DON'T we'll\tx=1;\r\n    return",
    "中文，日本語。 ไทย हिन्दी",
    "\x00\x07\x7f\ud7ff\uffff\U0010ffff",
]


def documents(languages: tuple[str, ...] = ()) -> list[str]:
    """The Universal Declaration of Human Rights in these languages, or in all."""
    path = DATA / "nltk_public_domain" / "udhr2.zip"
    if not path.exists():
        pytest.skip("the UDHR texts are not here")
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".txt")]
        chosen = [name for name in names if not languages or Path(name).stem in languages]
        return [archive.read(name).decode("utf-8") for name in chosen]


def document_of(name: str) -> bytes:
    path = DATA / "tokenizers" / FILES[name]
    if not path.exists():
        pytest.skip("the tokenizers are not here")
    return path.read_bytes()


def their_ids(document: bytes, texts: list[str]) -> list[list[int]]:
    """By the library alone, as it comes."""
    library = Library.from_str(document.decode())
    return [library.encode(text, add_special_tokens=False).ids for text in texts]


def roles_for(document: bytes) -> Tokenizer:
    """Ours, whatever its control tokens are: any of them plays every part."""
    parsed = json.loads(document)
    added = [token["content"] for token in parsed["added_tokens"]]
    if not added:
        content, index = max(parsed["model"]["vocab"].items(), key=lambda item: item[1])
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        parsed["added_tokens"] = [{"id": index, "content": content, **flags}]
        document, added = json.dumps(parsed).encode(), [content]
    return Tokenizer(document, SpecialTokens(bos=None, eos=added[0], pad=added[0], end_of_turn=added[0]))


def same_ids(name: str, texts: list[str]) -> None:
    document = document_of(name)
    ours, theirs = roles_for(document), their_ids(document, texts)
    assert [ours.encode(text) for text in texts] == theirs
    assert ours.encode_batch(texts) == theirs


@pytest.mark.parametrize("name", FILES)
def test_ids_are_those_of_the_library(name: str) -> None:
    texts = documents(LANGUAGES)
    assert len(texts) == len(LANGUAGES)
    same_ids(name, [*AWKWARD, *texts])


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_ids_are_those_of_the_library_in_every_language(name: str) -> None:
    texts = documents()
    assert len(texts) == 388
    same_ids(name, texts)


@pytest.mark.parametrize("name", ["gpt2", "minimind"])
def test_text_survives_in_every_script(name: str) -> None:
    tokenizer = roles_for(document_of(name))
    for text in documents(LANGUAGES):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("name", "roles"),
    [
        ("hf_gpt2", (None, "<|endoftext|>", "<|endoftext|>", "<|endoftext|>", "plain")),
        ("minimind", (None, "<|im_end|>", "<|endoftext|>", "<|im_end|>", "chatml")),
        ("torchtitan_test", ("<|begin_of_text|>", "<|end_of_text|>", "<|pad|>", "<|end_of_text|>", "plain")),
    ],
)
def test_roles_are_those_that_the_folder_names(name: str, roles: tuple[str, ...]) -> None:
    folder = DATA / "tokenizers" / name
    if not folder.exists():
        pytest.skip("the tokenizers are not here")
    chat = None if name == "hf_gpt2" else roles[-1]
    special = read_tokenizer(folder, Settings(folder / "config.json", {}), chat=chat).special
    assert (special.bos, special.eos, special.pad, special.end_of_turn, special.chat) == roles


def test_a_library_that_would_cut_texts_is_told_not_to() -> None:
    parsed = json.loads(Tokenizer.train_bpe(["a b c"], 270).files()["tokenizer.json"])
    parsed["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    tokenizer = Tokenizer(json.dumps(parsed).encode())
    assert len(tokenizer.encode("x y z " * 10)) > 4
    assert all(len(ids) > 4 for ids in tokenizer.encode_batch(["x y z " * 10] * 2))


def test_parts_of_a_text_continue_it() -> None:
    tokenizer = Tokenizer.byte_level()
    assert tokenizer.encode_part("hi", after="text") == tokenizer.encode("hi")


FAMILIES = {
    "llama": {},
    "mistral": {"attention": {"window": 8}},
    "qwen2": {"attention": {"qkv_bias": True}},
    "qwen3": {"attention": {"qk_norm": "head"}},
    "olmo2": {"attention": {"qk_norm": "width"}, "layout": "reordered"},
    "gemma": {
        "norm": {"kind": "rmsnorm_offset", "eps": 1e-5},
        "feedforward": {"kind": "geglu"},
        "embedding_scale": 16**0.5,
    },
    "gpt2": {
        "norm": "layernorm",
        "positions": "learned",
        "feedforward": {"kind": "gelu", "bias": True},
        "attention": {"heads": 4, "kv_heads": 4, "qkv_bias": True, "out_bias": True},
    },
}


def tokenizers_to_export() -> dict[str, Tokenizer]:
    found = {"bytes": Tokenizer.byte_level(), "bpe": Tokenizer.train_bpe(AWKWARD * 3, 350)}
    document = json.loads(found["bpe"].files()["tokenizer.json"])
    document["normalizer"] = {"type": "NFC"}
    document["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": QWEN_SPLIT}
    found["qwen"] = Tokenizer(json.dumps(document).encode())
    gpt2 = DATA / "tokenizers" / "hf_gpt2"
    if gpt2.exists():
        found["gpt2"] = read_tokenizer(gpt2, Settings(gpt2 / "config.json", {}))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_auto_tokenizer_on_an_export_gives_our_ids(tmp_path: Path, family: str) -> None:
    transformers = pytest.importorskip("transformers")
    for name, tokenizer in tokenizers_to_export().items():
        if (name == "qwen") != (family == "qwen2") or (name == "gpt2" and family not in ("llama", "qwen3")):
            continue  # qwen2 takes no other; the large one is slow to load
        settings = {"width": 16, "depth": 1, "context": 32, "vocab_size": tokenizer.vocab_size, **FAMILIES[family]}
        model = ModelConfig.model_validate(settings).build(seed=0)
        folder = tmp_path / name
        folder.mkdir()
        write_manifest(folder, kind="policy", made_by="test", config={}, files=save_model(folder, model, tokenizer))
        assert export_hf(folder, tmp_path / f"{name}-hf").config["model_type"] == family
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / f"{name}-hf")
        assert (theirs.eos_token_id, theirs.pad_token_id) == (tokenizer.eos_id, tokenizer.pad_id)
        assert theirs.bos_token_id == tokenizer.bos_id and theirs.model_max_length == 32
        texts = AWKWARD if name != "gpt2" or family != "llama" else [*AWKWARD, *documents(LANGUAGES)]
        for text in texts:
            ids = theirs(text, add_special_tokens=False, verbose=False).input_ids
            assert ids == tokenizer.encode(text), (family, name, text)
            assert theirs.decode(ids) == tokenizer.decode(ids)
