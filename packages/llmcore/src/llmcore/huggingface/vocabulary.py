"""The tokenizer of a Hugging Face folder: its tokenizer.json, the roles of its control tokens, its chat format.

Roles are gathered from tokenizer_config.json, special_tokens_map.json, generation_config.json and config.json, which
models fill as they like.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from llmcore.chat_formats import FORMATS
from llmcore.errors import ArtifactError, ConfigError
from llmcore.huggingface.dialects import Dialect, conventional, recognise, signed
from llmcore.huggingface.settings import Json, Settings, read_json, read_json_if_there
from llmcore.storage import read_regular
from llmcore.tokenizer import FILE_LIMIT, TOKENIZER_FILE, SpecialTokens, Tokenizer

END_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")
PAD_NAMES = ("<|pad|>", "[PAD]", "<pad>", "<|finetune_right_pad_id|>", "<|reserved_special_token_0|>", "<|fim_pad|>")
TOKENIZER_CONFIG = "tokenizer_config.json"
GENERATION_CONFIG = "generation_config.json"
TEMPLATE = "chat_template.jinja"


class Clues(NamedTuple):
    """What a folder says about its tokens."""

    document: Json
    vocabulary: dict[str, int]
    roles: dict[str, str]
    stops: list[str]
    template: str | None
    adds_bos: bool


def read_tokenizer(folder: Path, hf: Settings, *, chat: str | None = None) -> Tokenizer:
    """The tokenizer with its roles and chat format; `chat` overrides the template, "none" goes without."""
    path = folder / TOKENIZER_FILE
    if not path.exists():
        others = [name for name in ("tokenizer.model", "vocab.json", "vocab.txt") if (folder / name).exists()]
        raise ArtifactError(
            f"{folder} has no {TOKENIZER_FILE}" + (f", only {others[0]}" if others else ""),
            hint="load its tokenizer with transformers' AutoTokenizer and save_pretrained it into this folder",
        )
    data = read_regular(path, limit=FILE_LIMIT)
    clues = gather(folder, hf)
    special = choose_roles(clues, chat, folder)
    return Tokenizer(complete(clues, special, data), special)


def gather(folder: Path, hf: Settings) -> Clues:
    """Read the small files around a tokenizer.json."""
    document = read_json(folder / TOKENIZER_FILE, limit=FILE_LIMIT)
    config = read_json_if_there(folder / TOKENIZER_CONFIG)
    generation = read_json_if_there(folder / GENERATION_CONFIG)
    add_tokens(document, config, folder)
    vocabulary = vocabulary_of(document)
    named = {index: token for token, index in vocabulary.items()}
    roles: dict[str, str] = {}
    for table in (config, read_json_if_there(folder / "special_tokens_map.json")):
        for role in ("bos", "eos", "pad", "unk"):
            token = content_of(table.get(f"{role}_token"))
            if token in vocabulary:
                roles.setdefault(role, token)
    stops = [named[i] for table in (generation, hf.values) for i in ids_of(table.get("eos_token_id")) if i in named]
    for role in ("bos", "pad"):
        for index in ids_of(hf.values.get(f"{role}_token_id")):
            if index in named:
                roles.setdefault(role, named[index])
    return Clues(
        document=document,
        vocabulary=vocabulary,
        roles=roles,
        stops=list(dict.fromkeys(stops)),
        template=read_template(folder, config),
        adds_bos=bool(config.get("add_bos_token")) or begins(document, roles.get("bos")),
    )


def choose_roles(clues: Clues, chat: str | None, folder: Path) -> SpecialTokens:
    """Which control token plays which part."""
    dialect, ours = choose_dialect(clues, chat, folder)
    ends = [clues.roles["eos"]] if "eos" in clues.roles else []
    ends += clues.stops
    ends = ends or [name for name in END_NAMES if name in clues.vocabulary][:1]
    if not ends:
        raise ArtifactError(
            f"{folder} names no token that ends a text (eos_token in {TOKENIZER_CONFIG}, eos_token_id in config.json)",
            hint=f"add eos_token to {folder / TOKENIZER_CONFIG}",
        )
    if ours:
        eos, end_of_turn = ends[0], (clues.stops or ends)[0]
    else:
        end_of_turn = dialect.end_of_turn or ends[0]
        eos = next((token for token in ends if token != end_of_turn), end_of_turn)
    if end_of_turn not in clues.vocabulary:
        raise ConfigError(
            f"the chat format {dialect.name!r} ends turns with {end_of_turn!r}, which this tokenizer does not have",
            hint="choose another with --chat, or --chat none",
        )
    bos = clues.roles.get("bos")
    begins_chat = clues.adds_bos if clues.template is None else "bos_token" in clues.template or bos_spelled(clues)
    return SpecialTokens(
        bos=bos if begins_chat else None,
        eos=eos,
        pad=choose_pad(clues, taken={eos, end_of_turn}),
        end_of_turn=end_of_turn,
        chat=dialect.name,
    )


def choose_dialect(clues: Clues, chat: str | None, folder: Path) -> tuple[Dialect, bool]:
    """The chat format, and whether an export of ours named it. Without a template: ChatML if its tokens are there."""
    if chat is not None:
        if chat not in FORMATS:
            raise ConfigError(f"--chat {chat!r} is no chat format", hint=f"choose one of {', '.join(FORMATS)}")
        return conventional(chat), False
    if clues.template is None:
        has_chatml = {"<|im_start|>", "<|im_end|>"} <= clues.vocabulary.keys()
        return conventional("chatml" if has_chatml else "plain"), False
    name = signed(clues.template)
    if name in FORMATS:
        return conventional(name), True
    found = recognise(clues.template)
    if found is None:
        raise ConfigError(
            f"{folder} has a chat template that is none of the known formats ({', '.join(FORMATS)})",
            hint="give the one it equals with --chat NAME, or import without chat by --chat none",
        )
    return found, False


def choose_pad(clues: Clues, *, taken: set[str]) -> str:
    """A token that nothing else uses, if there is one: padding is masked by position here, but not everywhere."""
    wishes = [clues.roles.get("pad"), *PAD_NAMES, clues.roles.get("unk")]
    free = [token for token in wishes if token in clues.vocabulary and token not in taken]
    return str(free[0]) if free else clues.roles.get("pad") or min(taken)


def complete(clues: Clues, special: SpecialTokens, data: bytes) -> bytes:
    """The tokenizer.json with every role among its control tokens; untouched bytes where they were there already."""
    document = clues.document
    added = document.setdefault("added_tokens", [])
    listed = {token["content"]: token for token in added}
    for token in (special.bos, special.eos, special.pad, special.end_of_turn):
        if token in listed:
            listed[token]["special"] = True
        elif token is not None:
            listed[token] = added_token(clues.vocabulary[token], token)
            added.append(listed[token])
    added.sort(key=lambda token: token["id"])
    return data if document == json.loads(data) else json.dumps(document, ensure_ascii=False).encode()


def add_tokens(document: Json, config: Json, folder: Path) -> None:
    """Tokens that tokenizer_config.json adds to tokenizer.json, as transformers does."""
    added = document.get("added_tokens")
    added = document["added_tokens"] = list(added) if isinstance(added, list) else []
    present = {token.get("content") for token in added if isinstance(token, dict)}
    extra = config.get("added_tokens_decoder") or {}
    for index, token in extra.items() if isinstance(extra, dict) else ():
        if not isinstance(token, dict) or not str(index).isdigit() or not isinstance(token.get("content"), str):
            raise ArtifactError(
                f"{folder / TOKENIZER_CONFIG}: added_tokens_decoder has no token at {index!r}",
                hint="download the model again, or mend the file",
            )
        if token["content"] not in present:
            flags = {name: bool(token.get(name)) for name in ("single_word", "lstrip", "rstrip", "normalized")}
            added.append(added_token(int(index), token["content"]) | flags | {"special": bool(token.get("special"))})


def added_token(index: int, content: str) -> Json:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": index, "content": content, **flags}


def vocabulary_of(document: Json) -> dict[str, int]:
    """Every token with its id."""
    model = document.get("model")
    entries: Any = model.get("vocab") if isinstance(model, dict) else None
    try:
        if isinstance(entries, dict):
            found = {str(token): int(index) for token, index in entries.items()}
        else:
            found = {str(entry[0]): index for index, entry in enumerate(entries)}
        return found | {str(token["content"]): int(token["id"]) for token in document["added_tokens"]}
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise ArtifactError(
            f"{TOKENIZER_FILE} holds no vocabulary ({type(error).__name__}: {error})",
            hint="download the model again, or save it with save_pretrained",
        ) from None


def begins(document: Json, bos: str | None) -> bool:
    """Whether the tokenizer itself puts the first token before a text."""
    processor = json.dumps(document.get("post_processor") or {}, ensure_ascii=False)
    template = '"TemplateProcessing"' in processor and '"SpecialToken"' in processor
    return bos is not None and template and json.dumps(bos, ensure_ascii=False) in processor


def bos_spelled(clues: Clues) -> bool:
    """Whether a template writes the first token itself."""
    bos = clues.roles.get("bos")
    return bos is not None and clues.template is not None and bos in clues.template[:200] and "im_start" not in bos


def read_template(folder: Path, config: Json) -> str | None:
    """The chat template: a file of its own, or in tokenizer_config.json (one, or several by name)."""
    if (folder / TEMPLATE).exists():
        return read_regular(folder / TEMPLATE, limit=FILE_LIMIT).decode("utf-8", "replace")
    found = read_json_if_there(folder / "chat_template.json").get("chat_template") or config.get("chat_template")
    if isinstance(found, list):
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def content_of(token: object) -> str:
    """A token written as its text, or as a table with it; empty where there is none."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else ""


def ids_of(value: object) -> list[int]:
    """One id or several."""
    return [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, int)]
