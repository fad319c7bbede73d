"""LoRA in a model and on disk: what it computes, what is trained, what is kept, and what is refused."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from llmcore.adapters import load_adapter, save_adapter
from llmcore.checkpoint import load_checkpoint, save_model
from llmcore.errors import ArtifactError, ConfigError
from llmcore.generate.engine import generate
from llmcore.generate.sampling import Sampling
from llmcore.lora import LoRA
from llmcore.losses import Batch, next_token_loss
from llmcore.manifest import read_manifest, write_manifest
from llmcore.model.adapters import adapted, adapter_tensors, adapters_off, add_adapters, merge_adapters
from llmcore.model.config import ModelConfig
from llmcore.model.linear import held_weights
from llmcore.model.transformer import Transformer
from llmcore.tokenizer import Tokenizer
from llmcore.train.loop import train_step
from llmcore.train.optim import AdamW

CONFIG = ModelConfig(vocab_size=260, width=32, depth=2, context=64)
IDS = torch.arange(40).view(2, 20)


def with_adapters(**settings: object) -> Transformer:
    """A model whose adapters say something."""
    model = CONFIG.build(seed=0)
    add_adapters(model, LoRA.model_validate({"rank": 4, **settings}), seed=1)
    for linear in adapted(model).values():
        nn.init.normal_(linear.adapter.b, std=0.3, generator=torch.Generator().manual_seed(3))  # type: ignore[union-attr, arg-type]
    return model.eval()


def test_new_adapters_change_nothing_and_alone_are_trained() -> None:
    model = CONFIG.build(seed=0)
    before = copy.deepcopy(model)
    add_adapters(model, LoRA(rank=4), seed=1)
    assert model(IDS).equal(before(IDS))
    mask = torch.ones_like(IDS, dtype=torch.bool)
    train_step(model, AdamW().build(model, 1e-2), [Batch(IDS, mask)], next_token_loss, clip=1.0)
    changed = {name for name, p in model.named_parameters() if p.requires_grad}
    assert changed == set(adapter_tensors(model)) and len(changed) == 2 * 4 * CONFIG.depth
    below = before.state_dict()
    assert all(below[name].equal(tensor) for name, tensor in model.state_dict().items() if name in below)
    assert not model(IDS).equal(before(IDS))


def test_an_adapter_is_the_matrix_alpha_over_rank_b_a() -> None:
    model = with_adapters(alpha=6.0)
    linear = model.blocks[0].attention.qkv
    x = torch.randn(3, 5, 32, dtype=torch.float64)
    linear.double()
    weight = linear.weight + 6 / 4 * linear.adapter.b @ linear.adapter.a
    torch.testing.assert_close(linear(x), x @ weight.T, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(linear.matrix(torch.float64), weight, rtol=1e-12, atol=1e-12)


def test_merged_held_and_beside_are_one_model() -> None:
    model = with_adapters()
    beside = model(IDS)
    with held_weights(model, torch.float32):
        torch.testing.assert_close(model(IDS), beside, rtol=1e-4, atol=1e-5)
    merged = copy.deepcopy(model)
    merge_adapters(merged)
    assert not adapted(merged) and all(p.requires_grad for p in merged.parameters())
    torch.testing.assert_close(merged(IDS), beside, rtol=1e-4, atol=1e-5)


def test_generation_uses_the_adapter() -> None:
    model = with_adapters()
    merged = copy.deepcopy(model)
    merge_adapters(merged)
    sampling = Sampling(max_new_tokens=12, temperature=0.0)
    prompts = [[1, 2, 3], [7]]
    adapted_says = [s[0].ids for s in generate(model, prompts, sampling, stop_ids=())]
    assert adapted_says == [s[0].ids for s in generate(merged, prompts, sampling, stop_ids=())]
    with adapters_off(model):
        assert adapted_says != [s[0].ids for s in generate(model, prompts, sampling, stop_ids=())]


def test_with_adapters_off_the_model_is_the_one_below_bit_for_bit() -> None:
    model, below = with_adapters(), CONFIG.build(seed=0)
    with_them = model(IDS)
    with adapters_off(model), adapters_off(model):
        assert model(IDS).equal(below(IDS))
        assert not adapted(model)
    assert model(IDS).equal(with_them) and len(adapted(model)) == 8


def test_dropout_of_adapters_is_in_training_alone() -> None:
    model = with_adapters(dropout=0.5)
    assert model(IDS).equal(model(IDS))
    model.train()
    assert not model(IDS).equal(model(IDS))


def test_first_weights_are_a_function_of_the_seed_and_differ_between_projections() -> None:
    def first(seed: int) -> dict[str, torch.Tensor]:
        model = CONFIG.build(seed=0)
        add_adapters(model, LoRA(), seed=seed)
        return adapter_tensors(model)

    one, same, other = first(5), first(5), first(6)
    assert all(one[name].equal(same[name]) for name in one)
    name = "blocks.0.attention.qkv.adapter.a"
    assert not one[name].equal(other[name]) and not one[name].equal(one[name.replace("0", "1")])
    bound = 1 / 32**0.5
    assert one[name].abs().max() <= bound and one[name].std() == pytest.approx(bound / 3**0.5, rel=0.2)


def test_projections_are_chosen_by_name_and_the_head_is_none_of_them() -> None:
    untied = CONFIG.model_copy(update={"tie_embeddings": False})
    model = untied.build(seed=0)
    add_adapters(model, LoRA(target_modules=("qkv", "feedforward.down")), seed=0)
    assert {name.partition(".")[2].partition(".")[2] for name in adapted(model)} == {
        "attention.qkv",
        "feedforward.down",
    }
    model = untied.build(seed=0)
    add_adapters(model, LoRA(), seed=0)
    assert model.head is not None and model.head.adapter is None and len(adapted(model)) == 8
    with pytest.raises(ConfigError, match="'q_proj' — 'qkv' holds it"):
        add_adapters(untied.build(seed=0), LoRA(target_modules=("q_proj",)), seed=0)


def test_latent_attention_brings_its_adapters_to_single_queries_too() -> None:
    config = ModelConfig.model_validate({"vocab_size": 64, "width": 32, "depth": 2, "context": 32, "attention": "mla"})
    model = config.build(seed=0)
    add_adapters(model, LoRA(rank=2), seed=0)
    for linear in adapted(model).values():
        nn.init.normal_(linear.adapter.b, std=0.5)  # type: ignore[union-attr, arg-type]
    merged = copy.deepcopy(model)
    merge_adapters(merged)
    sampling = Sampling(max_new_tokens=10, temperature=0.0)
    said = [generate(m, [[1, 2, 3]], sampling, stop_ids=())[0][0].ids for m in (model, merged)]
    assert said[0] == said[1]


def saved(folder: Path, model: Transformer) -> Path:
    """A policy's folder."""
    folder.mkdir()
    files = save_model(folder, model, Tokenizer.byte_level())
    write_manifest(folder, kind="policy", made_by="test", config={"folder": folder.name}, files=files)
    return folder


@pytest.fixture
def kept(tmp_path: Path) -> tuple[Path, Path, Transformer]:
    """A base model, an adapter of it, and the model with the adapter."""
    base = saved(tmp_path / "base", CONFIG.build(seed=0))
    model = with_adapters()
    folder = tmp_path / "adapter"
    folder.mkdir()
    files = save_adapter(folder, model, parent="base")
    write_manifest(
        folder,
        kind="adapter",
        made_by="test",
        config={},
        files=files,
        parents={"base": load_checkpoint(base).manifest},
        places={"base": "../base"},
    )
    return base, folder, model


def test_an_adapter_is_small_and_serves_wherever_a_policy_does(kept: tuple[Path, Path, Transformer]) -> None:
    base, folder, model = kept
    sizes = [(place / name).stat().st_size for place, name in
             ((base, "model.safetensors"), (folder, "adapter.safetensors"))]  # fmt: skip
    assert sizes[1] < sizes[0] / 2
    loaded = load_checkpoint(folder, expect="policy")
    torch.testing.assert_close(loaded.model(IDS), model(IDS), rtol=1e-4, atol=1e-5)
    assert loaded.manifest.kind == "adapter" and loaded.manifest.parents["base"].kind == "policy"
    assert load_adapter(folder, merge=False).model(IDS).equal(model(IDS))
    assert load_checkpoint(folder, head="scalar").model(IDS).shape == (2, 20, 1)
    with pytest.raises(ArtifactError, match="holds an adapter"):
        load_checkpoint(folder, expect="reward")


def test_a_parent_that_the_manifest_does_not_have_is_refused(tmp_path: Path) -> None:
    model = CONFIG.build(seed=0)
    add_adapters(model, LoRA(rank=2), seed=0)
    files = save_adapter(tmp_path, model, parent="base")
    write_manifest(tmp_path, kind="adapter", made_by="test", config={}, files=files)
    with pytest.raises(ArtifactError, match=r"adapter\.json stands on its parent 'base', and its manifest names none"):
        load_checkpoint(tmp_path)


def test_a_wrong_or_missing_base_is_refused(kept: tuple[Path, Path, Transformer]) -> None:
    base, folder, model = kept
    other = saved(base.parent / "other", CONFIG.build(seed=9))
    with pytest.raises(ArtifactError, match="stands on another model"):
        load_checkpoint(folder, base=other)
    moved = base.rename(base.parent / "moved")
    with pytest.raises(ArtifactError, match="not where it was"):
        load_checkpoint(folder)
    torch.testing.assert_close(load_checkpoint(folder, base=moved).model(IDS), model(IDS), rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="is no adapter"):
        load_checkpoint(moved, base=other)
    weights = bytearray((moved / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (moved / "model.safetensors").write_bytes(weights)
    with pytest.raises(ArtifactError, match="damaged"):
        load_checkpoint(folder, base=moved)


def test_a_place_that_leads_elsewhere_reads_no_other_model(kept: tuple[Path, Path, Transformer]) -> None:
    """Where the base lies is the one path outside its folder that a file names; only the recorded id is read there."""
    base, folder, _ = kept
    other = saved(base.parent / "other", CONFIG.build(seed=9))
    weights = other / "model.safetensors"
    weights.write_bytes(bytes(len(weights.read_bytes())))  # reading it would say that it is damaged
    manifest = read_manifest(folder)
    files = list(manifest.files)
    for place in ("../other", str(other), "../../../../../../etc", "."):
        places = {"base": place}
        write_manifest(
            folder, kind="adapter", made_by="test", config={}, files=files, parents=manifest.parents, places=places
        )
        with pytest.raises(ArtifactError, match="stands on (another model|a model that is not where it was)"):
            load_adapter(folder)
