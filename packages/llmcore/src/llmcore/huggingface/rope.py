"""Rotary positions in a config.json: `rope_parameters` of transformers 5, `rope_theta` and `rope_scaling` before it."""

from llmcore.errors import ArtifactError
from llmcore.huggingface.settings import Json, Settings
from llmcore.model.positions import NTK, LinearScaling, Llama3, RoPE, Scaling, Unscaled, YaRN

KNOWN = ("default", "linear", "yarn", "llama3")


def read_rope(hf: Settings, *, base: float = 10_000.0) -> RoPE:
    """The rotary positions of a model; `base` is its family's default."""
    new, old = hf.table("rope_parameters"), hf.table("rope_scaling")
    table = new if new.values else old
    base = table.number("rope_theta", hf.number("rope_theta", base))
    share = table.number("partial_rotary_factor", hf.number("partial_rotary_factor", 1.0))
    if share != 1.0:
        raise ArtifactError(
            f"{hf.path}: partial_rotary_factor={share!r} is not supported: all of a head turns here",
            hint="import a model whose partial_rotary_factor is 1",
        )
    return RoPE(base=base, scaling=read_scaling(hf, table))


def read_scaling(hf: Settings, table: Settings) -> Scaling:
    """How the waves are stretched."""
    kind = table.text("rope_type", table.text("type", "default"))
    if kind not in KNOWN:
        raise ArtifactError(
            f"{hf.path}: rope_type={kind!r} is not supported (supported: {', '.join(KNOWN)})",
            hint="import another model, or one without this scaling",
        )
    if kind == "default":
        return Unscaled()
    factor = table.number("factor")
    if kind == "linear":
        return LinearScaling(factor=factor)
    original = table.size("original_max_position_embeddings", hf.size("max_position_embeddings"))
    if kind == "llama3":
        low, high = table.number("low_freq_factor"), table.number("high_freq_factor")
        return Llama3(factor=factor, original_context=original, low=low, high=high)
    table.only("truncate", True, default=True)
    table.only("mscale", None)
    table.only("mscale_all_dim", None)
    given = table.values.get("attention_factor")
    return YaRN(
        factor=factor,
        original_context=original,
        fast=table.number("beta_fast", 32.0),
        slow=table.number("beta_slow", 1.0),
        attention_factor=None if given is None else table.number("attention_factor"),
    )


def write_rope(rope: RoPE, *, head_width: int) -> Json:
    """Both spellings: transformers 4 reads the one, 5 the other."""
    base = rope.base * rope.scaling.stretch(head_width) if isinstance(rope.scaling, NTK) else rope.base
    scaling = write_scaling(rope.scaling)
    found: Json = {"rope_theta": base, "rope_parameters": {"rope_theta": base, "rope_type": "default", **scaling}}
    return {**found, "rope_scaling": scaling} if scaling else found


def write_scaling(scaling: Scaling) -> Json:
    """Empty where the waves are as they are (or where no family has a word for what they are)."""
    if isinstance(scaling, LinearScaling):
        return {"rope_type": "linear", "factor": scaling.factor}
    if isinstance(scaling, YaRN):
        table = {
            "rope_type": "yarn",
            "factor": scaling.factor,
            "original_max_position_embeddings": scaling.original_context,
            "beta_fast": scaling.fast,
            "beta_slow": scaling.slow,
        }
        return table if scaling.attention_factor is None else {**table, "attention_factor": scaling.attention_factor}
    if isinstance(scaling, Llama3):
        return {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "original_max_position_embeddings": scaling.original_context,
            "low_freq_factor": scaling.low,
            "high_freq_factor": scaling.high,
        }
    return {}
