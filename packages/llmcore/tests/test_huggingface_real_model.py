"""A real trained model (stories260K, in the file format of llama2.c): its known greedy ids, here and as an export."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from llmcore.checkpoint import save_model
from llmcore.evaluate.likelihood import likelihoods
from llmcore.evaluate.options import Scored
from llmcore.generate.engine import generate
from llmcore.generate.sampling import Sampling
from llmcore.huggingface.writing import export_hf
from llmcore.losses import token_logprobs
from llmcore.manifest import write_manifest
from llmcore.model.config import ModelConfig
from llmcore.model.transformer import Transformer
from llmcore.tokenizer import Tokenizer

FOLDER = Path(__file__).parents[4] / "shared" / "data" / "models" / "stories260K"
HEADER = 7
BOS = 1


class Story(NamedTuple):
    """The model and what is known of it."""

    model: Transformer
    known: dict[str, Any]


@pytest.fixture(scope="module")
def story() -> Story:
    if not FOLDER.exists():
        pytest.skip("the model is not here")
    return Story(read_llama2c(FOLDER / "stories260K.bin"), json.loads((FOLDER / "greedy_ids.json").read_text()))


def read_llama2c(path: Path) -> Transformer:
    """Header of seven int32 (width, hidden, blocks, heads, kv heads, vocabulary, context), then float32 tensors."""
    data = path.read_bytes()
    width, hidden, depth, heads, kv_heads, vocabulary, context = np.frombuffer(data, np.int32, HEADER).tolist()
    numbers = torch.frombuffer(bytearray(data[4 * HEADER :]), dtype=torch.float32)
    place = 0

    def take(*shape: int) -> Tensor:
        nonlocal place
        count = int(np.prod(shape))
        place += count
        return numbers[place - count : place].view(shape).clone()

    keys = width // heads * kv_heads
    embedding, attention_norms = take(vocabulary, width), take(depth, width)
    queries, key, values = take(depth, width, width), take(depth, keys, width), take(depth, keys, width)
    outs, feedforward_norms = take(depth, width, width), take(depth, width)
    gates, downs, ups = take(depth, hidden, width), take(depth, width, hidden), take(depth, hidden, width)
    tensors = {"embedding.weight": embedding, "final_norm.weight": take(width)}
    for layer in range(depth):
        turned = [halves(queries[layer], heads), halves(key[layer], kv_heads), values[layer]]
        block = {
            "attention_norm.weight": attention_norms[layer],
            "attention.qkv.weight": torch.cat(turned),
            "attention.out.weight": outs[layer],
            "feedforward_norm.weight": feedforward_norms[layer],
            "feedforward.gate_up.weight": torch.cat([gates[layer], ups[layer]]),
            "feedforward.down.weight": downs[layer],
        }
        tensors |= {f"blocks.{layer}.{name}": tensor for name, tensor in block.items()}
    config = ModelConfig.model_validate(
        {
            "vocab_size": vocabulary,
            "width": width,
            "depth": depth,
            "context": context,
            "attention": {"heads": heads, "kv_heads": kv_heads},
            "feedforward": {"hidden": hidden},
        }
    )
    model = config.build(seed=0).eval()
    model.load_state_dict(tensors)
    return model


def halves(weight: Tensor, heads: int) -> Tensor:
    """Rows reordered from rotating neighbours (2c, 2c + 1) to rotating halves (c, c + C/2)."""
    rows, width = weight.shape
    return weight.view(heads, rows // heads // 2, 2, width).transpose(1, 2).reshape(rows, width)


def test_its_greedy_ids_are_reproduced(story: Story) -> None:
    wanted = story.known["ids"]
    sampling = Sampling(max_new_tokens=len(wanted), temperature=0.0)
    [[completion]] = generate(story.model, [[BOS]], sampling, stop_ids=[])
    assert list(completion.ids) == wanted


def test_its_scores_are_those_of_float64(story: Story) -> None:
    ids = torch.tensor([[BOS, *story.known["ids"][:128]]])
    with torch.no_grad():
        best = story.model(ids[:, :1])[0, 0].topk(5)
        wanted = story.known["first_position_top5"]
        assert best.indices.tolist() == [index for index, _ in wanted]
        assert (best.values - torch.tensor([score for _, score in wanted])).abs().max() < 1e-4
        nll = -token_logprobs(story.model, ids).mean()
    assert abs(float(nll) - story.known["mean_nll_first_128"]) < 1e-5


def test_its_known_ids_are_what_greedy_decoding_says_wherever_they_are_cut(story: Story) -> None:
    ids = [BOS, *story.known["ids"][:128]]
    family = [Scored(ids, start) for start in (1, 40, 128)]
    other = Scored([*ids[:-1], ids[-1] + 1], 128)
    [found] = likelihoods(story.model, [[*family, other]], pad_id=0)
    assert [one.greedy for one in found] == [True, True, True, False]
    assert abs(-found[0].total / 128 - story.known["mean_nll_first_128"]) < 1e-5


def test_its_export_reproduces_them_too(story: Story, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    files = save_model(tmp_path, story.model, Tokenizer.byte_level())
    write_manifest(tmp_path, kind="policy", made_by="test", config={}, files=files)
    export_hf(tmp_path, tmp_path / "hf", check=True)
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    wanted = story.known["ids"]
    options = {"max_new_tokens": len(wanted), "do_sample": False, "eos_token_id": None}
    ids = reference.generate(torch.tensor([[BOS]]), attention_mask=torch.ones(1, 1), **options)
    assert ids[0, 1:].tolist() == wanted
