"""The whole model: what it may see, its layouts, its first weights, and what it costs."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcore.errors import ConfigError
from llmcore.model.config import ModelConfig
from llmcore.model.linear import Linear
from llmcore.model.size import (
    cache_bytes_per_token,
    count_parameters,
    flops_per_token,
    parameters_by_module,
    skeleton,
)
from llmcore.model.transformer import (
    Transformer,
    last_attended,
    mean_attended,
    restart_positions,
    take_aux_losses,
)

SHAPE: dict[str, object] = {"vocab_size": 50, "width": 32, "depth": 2, "context": 16, "initial_std": 0.2}
KINDS: dict[str, dict[str, object]] = {
    "default": {},
    "gpt-2": {
        "positions": {"kind": "learned"},
        "norm": {"kind": "layernorm"},
        "feedforward": {"kind": "gelu", "bias": True},
        "attention": {"kv_heads": 4, "qkv_bias": True, "out_bias": True},
    },
    "original": {
        "positions": {"kind": "sinusoidal"},
        "norm": {"kind": "layernorm"},
        "layout": "post",
        "tie_embeddings": False,
    },
    "olmo": {"layout": "reordered", "attention": {"qk_norm": "width"}, "feedforward": {"kind": "relu2"}},
    "gemma": {
        "attention": {"head_width": 16, "soft_cap": 20.0, "window": 5, "scale": 0.2},
        "feedforward": {"kind": "geglu"},
        "embedding_scale": 5.0,
    },
    "encoder": {"attention": {"causal": False}},
}
CAUSAL = [name for name in KINDS if name != "encoder"]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", CAUSAL)
def test_a_later_token_changes_nothing_before_it(name: str) -> None:
    model, ids = model_with(KINDS[name]), torch.randint(0, 49, (2, 10))
    changed = ids.clone()
    changed[:, 6] += 1
    before, after = model(ids), model(changed)
    assert before.shape == (2, 10, 50)
    torch.testing.assert_close(after[:, :6], before[:, :6])
    assert not torch.allclose(after[:, 6], before[:, 6])
    assert not torch.allclose(after[:, 9], before[:, 9])


def test_an_encoder_sees_what_follows() -> None:
    model, ids = model_with(KINDS["encoder"]), torch.randint(0, 49, (1, 10))
    changed = ids.clone()
    changed[:, 9] += 1
    assert not torch.allclose(model(changed)[:, 0], model(ids)[:, 0])


@pytest.mark.parametrize("name", KINDS)
def test_padding_changes_nothing(name: str) -> None:
    model = model_with(KINDS[name])
    short = torch.randint(0, 50, (1, 6))
    for pads in ((0, 4), (4, 0)):
        ids = F.pad(short, pads, value=7)
        attended = F.pad(torch.ones_like(short), pads).bool()
        padded = model(ids, attended=attended)[attended]
        torch.testing.assert_close(padded, model(short)[0], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_attention_needs_no_mask_for_padding_on_the_right(name: str) -> None:
    model, short = model_with(KINDS[name]), torch.randint(0, 50, (1, 6))
    padded = model(F.pad(short, (0, 5), value=3))[:, :6]
    torch.testing.assert_close(padded, model(short), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_a_row_does_not_depend_on_its_batch(name: str) -> None:
    model, ids = model_with(KINDS[name]), torch.randint(0, 50, (3, 8))
    torch.testing.assert_close(model(ids)[1:2], model(ids[1:2]), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_packed_documents_equal_unpacked_ones(name: str) -> None:
    model = model_with(KINDS[name])
    pieces = [torch.randint(0, 50, (1, n)) for n in (5, 1, 8)]
    documents = torch.cat([torch.full_like(piece, i) for i, piece in enumerate(pieces)], 1)
    packed = model(torch.cat(pieces, 1), documents=documents)
    alone = torch.cat([model(piece) for piece in pieces], 1)
    torch.testing.assert_close(packed, alone, atol=2e-6, rtol=1e-5)


def test_positions_restart_with_each_document() -> None:
    documents = torch.tensor([[3, 3, 3, 5, 5, 0], [1, 1, 1, 1, 1, 1]])
    assert restart_positions(documents).tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("name", KINDS)
def test_bfloat16_stays_close_to_float32(name: str) -> None:
    model, ids = model_with(KINDS[name] | {"initial_std": 0.05}), torch.randint(0, 50, (2, 12))
    exact = model(ids)
    model.activation_dtype = torch.bfloat16
    low = model(ids)
    assert low.dtype == torch.float32
    assert (low - exact).norm() / exact.norm() < 0.03
    low.sum().backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients and all(gradient.dtype == torch.float32 for gradient in gradients)


@pytest.mark.parametrize("name", KINDS)
def test_gradients_of_the_whole_model(name: str) -> None:
    tiny = {"vocab_size": 5, "width": 8, "depth": 1, "context": 4, "initial_std": 0.5}
    attention = {"heads": 2, "kv_heads": 1} | (KINDS[name].get("attention") or {}) | {"kv_heads": 1}  # type: ignore[operator]
    attention |= {"head_width": 4}
    feedforward = {"hidden": 3} | (KINDS[name].get("feedforward") or {})  # type: ignore[operator]
    config = tiny | KINDS[name] | {"attention": attention, "feedforward": feedforward}
    model = ModelConfig.model_validate(config).build(seed=0).double()
    model.activation_dtype = torch.float64
    ids = torch.tensor([[0, 1, 4]])

    def run(*_weights: Tensor) -> Tensor:
        scores: Tensor = model(ids)
        return scores.logsumexp(-1)

    assert torch.autograd.gradcheck(run, tuple(model.parameters()), fast_mode=True)


def test_names_and_shapes_of_the_weights() -> None:
    names = {name: tuple(p.shape) for name, p in model_with({"depth": 1}).state_dict().items()}
    assert names == {
        "embedding.weight": (50, 32),
        "blocks.0.attention_norm.weight": (32,),
        "blocks.0.attention.qkv.weight": (64, 32),
        "blocks.0.attention.out.weight": (32, 32),
        "blocks.0.feedforward_norm.weight": (32,),
        "blocks.0.feedforward.gate_up.weight": (192, 32),
        "blocks.0.feedforward.down.weight": (32, 96),
        "final_norm.weight": (32,),
    }
    assert model_with({"tie_embeddings": False}).state_dict()["head.weight"].shape == (50, 32)
    assert model_with({"head": "scalar"}).state_dict()["head.weight"].shape == (1, 32)


def test_first_weights_have_the_stated_spread() -> None:
    model = ModelConfig(vocab_size=300, width=256, depth=8).build(seed=0)
    block = model.blocks[3]
    for weight, std in (
        (model.embedding.weight, 0.02),
        (block.attention.qkv.weight, 0.02),
        (block.attention.out.weight, 0.02 / 4),
        (block.feedforward.gate_up.weight, 0.02),
        (block.feedforward.down.weight, 0.02 / 4),
    ):
        assert weight.std().item() == pytest.approx(std, rel=0.03)
    scores = model(torch.randint(0, 300, (2, 50)))
    assert scores.std() < 0.5


def test_first_weights_are_a_function_of_the_seed() -> None:
    torch.manual_seed(5)
    first, noise = model_with({}), torch.rand(1)
    torch.manual_seed(6)
    again, other = model_with({}), ModelConfig.model_validate(SHAPE).build(seed=8)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.embedding.weight, other.embedding.weight)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), noise), "building with a seed leaves the global generator alone"


def test_a_scalar_head_scores_each_token_near_zero_at_first() -> None:
    model = ModelConfig(vocab_size=50, head="scalar").build(seed=0)
    scores = model(torch.randint(0, 50, (4, 30)))
    assert scores.shape == (4, 30, 1)
    assert 0.01 < scores.std() < 0.2
    assert model.head_weight().shape == (1, 256)


@pytest.mark.parametrize("name", KINDS)
def test_a_model_that_generated_first_can_be_trained(name: str) -> None:
    """Whatever is kept from a forward in inference mode serves the backward too."""
    model, ids = model_with(KINDS[name]), torch.randint(0, 50, (1, 6))
    with torch.inference_mode():
        model(ids)
    model(ids).sum().backward()
    assert model.embedding.weight.grad is not None


def test_pooling_by_hand() -> None:
    hidden = torch.arange(12.0).view(2, 3, 2)
    attended = torch.tensor([[True, True, False], [False, True, True]])
    assert last_attended(hidden, attended).tolist() == [[2.0, 3.0], [10.0, 11.0]]
    assert mean_attended(hidden, attended).tolist() == [[1.0, 2.0], [9.0, 10.0]]


def test_aux_losses_are_summed_and_cleared() -> None:
    model = model_with({})
    assert take_aux_losses(model) is None
    weight = model.embedding.weight
    model.blocks[0].feedforward.aux_loss = weight.sum()
    model.blocks[1].feedforward.aux_loss = 2 * weight.sum()
    total = take_aux_losses(model)
    assert total is not None
    torch.testing.assert_close(total, 3 * weight.sum())
    assert take_aux_losses(model) is None
    copy.deepcopy(model)


def test_biases_only_where_asked_for() -> None:
    assert not [n for n, _ in model_with({}).named_parameters() if "bias" in n]
    model = model_with(KINDS["gpt-2"])
    for module in model.modules():
        if isinstance(module, Linear):
            assert module.bias is not None and not module.bias.any()


def test_dropout_acts_in_training_alone() -> None:
    ids = torch.randint(0, 50, (1, 6))
    model = model_with({"dropout": 0.3})
    torch.testing.assert_close(model.eval()(ids), model_with({})(ids))
    assert not torch.equal(model.train()(ids), model(ids))


def test_a_model_needs_to_know_its_vocabulary() -> None:
    config = ModelConfig(width=32)
    with pytest.raises(ConfigError, match="vocab_size is not known"):
        config.build()
    assert config.with_vocabulary(77).build(seed=0).embedding.weight.shape == (77, 32)
    padded = ModelConfig(width=32, vocab_size=128)
    assert padded.with_vocabulary(77).vocab_size == 128
    with pytest.raises(ConfigError, match="vocab_size is 128, but the tokenizer has 200 tokens"):
        padded.with_vocabulary(200)


def test_a_config_survives_json() -> None:
    for settings in KINDS.values():
        config = ModelConfig.model_validate(SHAPE | settings)
        assert ModelConfig.model_validate_json(config.model_dump_json()) == config


def test_too_long_a_sequence_is_refused() -> None:
    with pytest.raises(ConfigError, match="17 tokens in a context of 16"):
        model_with({})(torch.zeros(1, 17, dtype=torch.long))


def test_parameters_are_counted_without_memory() -> None:
    config = ModelConfig(vocab_size=260)
    model = skeleton(config)
    by_hand = 260 * 256 + 4 * (256 * 512 + 256 * 256 + 3 * 256 * 688 + 2 * 256) + 256
    assert count_parameters(model) == by_hand
    counts = parameters_by_module(model)
    assert sum(counts.values()) == by_hand and counts["embedding"] == 260 * 256
    assert parameters_by_module(model, levels=2)["blocks.1.attention"] == 256 * 512 + 256 * 256
    assert model.embedding.weight.device.type == "meta"


def test_flops_and_cache_bytes_by_hand() -> None:
    model = skeleton(ModelConfig(vocab_size=260))
    matrices = 260 * 256 + 4 * (256 * 512 + 256 * 256 + 3 * 256 * 688)
    assert flops_per_token(model) == 6 * (matrices + 2 * 4 * 256 * 128)
    untied = skeleton(ModelConfig(vocab_size=260, tie_embeddings=False))
    assert flops_per_token(untied) == flops_per_token(model)
    assert cache_bytes_per_token(model.config) == 2 * 4 * 2 * 64 * 4
    assert cache_bytes_per_token(model.config, torch.bfloat16) == 2 * 4 * 2 * 64 * 2


def test_a_block_by_hand() -> None:
    """The default block equals its formula, written out."""
    model = model_with({"depth": 1, "attention": {"heads": 1, "kv_heads": 1}, "positions": {"kind": "none"}})
    ids, block = torch.randint(0, 50, (1, 7)), model.blocks[0]
    x = model.embedding.weight[ids[0]]
    normed = F.rms_norm(x, (32,), eps=1e-5)
    query, key, value = (normed @ block.attention.qkv.weight.T).split(32, -1)
    scores = (query @ key.T / math.sqrt(32)).masked_fill(~torch.ones(7, 7).tril().bool(), -math.inf)
    x = x + scores.softmax(-1) @ value @ block.attention.out.weight.T
    gate, up = (F.rms_norm(x, (32,), eps=1e-5) @ block.feedforward.gate_up.weight.T).chunk(2, -1)
    x = x + (F.silu(gate) * up) @ block.feedforward.down.weight.T
    expected = F.rms_norm(x, (32,), eps=1e-5) @ model.embedding.weight.T
    torch.testing.assert_close(model(ids)[0], expected, atol=1e-5, rtol=1e-5)


def test_post_norm_blocks_end_with_their_own_norm() -> None:
    assert isinstance(model_with({"layout": "post"}).final_norm, nn.Identity)


def model_with(settings: dict[str, object]) -> Transformer:
    return ModelConfig.model_validate(SHAPE | settings).build(seed=1)
