"""A family: one `model_type` of Hugging Face, its settings and key map both ways; and which one fits a model of ours.

A model fits a family if its settings, written to that family's config.json and read back, say the same. So nothing
that a family has no word for can be lost silently, also when this package learns new parts.
"""

import difflib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from llmcore.errors import ConfigError, LLMError
from llmcore.extensions import installed, load_entry
from llmcore.huggingface.keys import Rule, same
from llmcore.huggingface.settings import Json, Settings
from llmcore.model.attention import GroupedQuery
from llmcore.model.config import ModelConfig
from llmcore.model.feedforward import FeedForward
from llmcore.model.positions import NTK, RoPE, Unscaled

GROUP = "llmcore.huggingface"
TRAINING_ONLY = {"dropout", "attention.dropout", "initial_std", "feedforward.expansion"}


@dataclass(frozen=True)
class Family:
    """One `model_type`: what its config.json says of an architecture, and the names of its tensors."""

    model_type: str
    """As in config.json."""
    name: str
    """The stem of its classes: Llama for LlamaForCausalLM."""
    parts: Mapping[str, str]
    """The kinds of the parts that it has, by field of ModelConfig."""
    read: Callable[[Settings], ModelConfig]
    """Our architecture, with an lm head, from theirs; refuses what ours cannot compute."""
    write: Callable[[ModelConfig], Json]
    """Their settings of an architecture made of `parts`."""
    rules: Callable[[ModelConfig], list[Rule]]
    """The key map of everything below the head."""
    causal: str = "ForCausalLM"
    """The end of the name of its class with an lm head."""
    prefix: str = "model."
    """What their tensors' names begin with; base models are saved without it."""
    ignored: Callable[[str], bool] = lambda name: name.endswith("rotary_emb.inv_freq")
    """Tensors that hold nothing learned."""
    training_only: frozenset[str] = frozenset()
    """Settings of its parts that change only how a model is trained."""
    takes_tokenizer: Callable[[Json], bool] = lambda _document: True
    """Whether transformers uses such a tokenizer.json as it is for this `model_type`."""

    def architecture(self, config: ModelConfig) -> str:
        """The class that loads it."""
        return self.name + ("ForSequenceClassification" if config.head == "scalar" else self.causal)

    def all_rules(self, config: ModelConfig) -> list[Rule]:
        """The whole key map, head included."""
        if config.head == "scalar":
            return [*self.rules(config), same("head.weight", "score.weight")]
        return [*self.rules(config), *([] if config.tie_embeddings else [same("head.weight", "lm_head.weight")])]


def builtin_families() -> dict[str, Family]:
    """The core's own, in the order in which an export tries them."""
    from llmcore.huggingface.gemma import GEMMA
    from llmcore.huggingface.gpt2 import GPT2
    from llmcore.huggingface.llama import LLAMA, MISTRAL
    from llmcore.huggingface.olmo import OLMO2
    from llmcore.huggingface.qwen import QWEN2, QWEN3

    return {family.model_type: family for family in (LLAMA, MISTRAL, QWEN2, QWEN3, OLMO2, GEMMA, GPT2)}


def all_families() -> dict[str, Family]:
    """Also those that installed packages offer."""
    families = builtin_families()
    for name, entry in installed(GROUP).items():
        families.setdefault(name, cast(Family, load_entry(entry)))
    return families


def find_family(model_type: str) -> Family:
    """The family of a `model_type`."""
    families = builtin_families()
    if model_type in families:
        return families[model_type]
    families = all_families()
    if model_type not in families:
        near = difflib.get_close_matches(model_type, families, 1)
        raise ConfigError(
            f"model_type {model_type!r} is none of the known families ({', '.join(families)})"
            + (f"; the nearest is {near[0]!r}, but they are not the same" if near else ""),
            hint="import a model of a known family (mixture of experts: install packages/llmmoe)",
        )
    return families[model_type]


def fitting_family(config: ModelConfig, tokenizer: Json) -> Family:
    """The first family that can hold a model and its tokenizer.json; if none can, an error names what is in the way."""
    found: dict[str, list[str]] = {}
    for family in all_families().values():
        found[family.name] = obstacles(family, config)
        if found[family.name]:
            continue
        if family.takes_tokenizer(tokenizer):
            return family
        found[family.name].append("tokenizer but its own: transformers would read this one's text into other ids")
    least = min(map(distance, found.values()))
    nearest = [f"{name} has no {', '.join(one)}" for name, one in found.items() if distance(one) == least]
    raise ConfigError(
        f"no Hugging Face family known here fits this model; the nearest: {'; '.join(nearest[:3])}",
        hint="train with settings that a family has, or keep to llmcore's own checkpoint",
    )


def distance(missing: list[str]) -> int:
    """How far a family is from a model: another kind of part is farther than another setting."""
    return sum(10 if ".kind=" in one else 1 for one in missing)


def obstacles(family: Family, config: ModelConfig) -> list[str]:
    """The settings that a family cannot hold, as `name=value`."""
    kinds = {name: getattr(config, name).kind for name in family.parts}
    strange = [f"{name}.kind={kind!r}" for name, kind in kinds.items() if kind != family.parts[name]]
    if strange:
        return strange
    written = {"model_type": family.model_type, "vocab_size": config.vocab_size, **family.write(config)}
    try:
        held = family.read(Settings(Path("config.json"), written)).model_copy(update={"head": config.head})
    except (ValueError, LLMError) as error:
        return [f"such sizes ({str(error).splitlines()[0]})"]
    return [f"{name}={value!r}" for name, value in different(family, config, held).items()]


def different(family: Family, wanted: ModelConfig, found: ModelConfig) -> dict[str, Any]:
    """The facts of `wanted` that are others in `found`."""
    there = facts(found)
    differing = {name: fact for name, fact in facts(wanted).items() if there.get(name) != fact}
    return {name: fact for name, fact in differing.items() if name not in family.training_only}


def facts(config: ModelConfig) -> dict[str, Any]:
    """What decides which function a model computes: flat, spelled out, without what only training needs."""
    config = spelled_out(config)
    found = dict(flatten(config.model_dump(mode="json")))
    for name in list(found):
        if name in TRAINING_ONLY or name.startswith("attention.backend"):
            del found[name]
    if found.get("attention.qk_norm") == "off":
        found.pop("attention.qk_norm_eps", None)
    if config.head == "scalar":
        found.pop("tie_embeddings")
    return found


def spelled_out(config: ModelConfig) -> ModelConfig:
    """The same function, with derived sizes given and stretched rotary waves as the base that they amount to."""
    attention, positions = config.attention, config.positions
    feedforward: FeedForward = config.feedforward
    hidden_width = getattr(feedforward, "hidden_width", None)
    if isinstance(attention, GroupedQuery):
        head_width = attention.head_size(config.width)
        scale = attention.scale or 1 / math.sqrt(head_width)
        attention = attention.model_copy(update={"head_width": head_width, "scale": scale})
    if hidden_width is not None:
        feedforward = feedforward.model_copy(update={"hidden": hidden_width(config.width)})
    if isinstance(positions, RoPE) and isinstance(positions.scaling, NTK):
        head_width = config.attention.head_size(config.width)
        base = positions.base * positions.scaling.stretch(head_width)
        positions = positions.model_copy(update={"base": base, "scaling": Unscaled()})
    return config.model_copy(update={"attention": attention, "feedforward": feedforward, "positions": positions})


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each leaf of nested tables with its dotted name."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
