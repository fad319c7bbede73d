"""What an export holds, and what it refuses; transformers is not needed here."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner

import llmcore
from llmcore.checkpoint import load_checkpoint, save_model
from llmcore.cli import app
from llmcore.errors import ArtifactError, ConfigError
from llmcore.huggingface import writing
from llmcore.huggingface.family import builtin_families, fitting_family
from llmcore.huggingface.reading import import_hf, read_hf
from llmcore.huggingface.writing import export_hf
from llmcore.manifest import family, read_manifest, verify_artifact, write_manifest
from llmcore.model.config import ModelConfig
from llmcore.tokenizer import Tokenizer

TINY: dict[str, Any] = {"vocab_size": 260, "width": 32, "depth": 2, "context": 32}


def saved(folder: Path, **settings: Any) -> Path:
    """A tiny checkpoint with the byte tokenizer."""
    model = ModelConfig.model_validate({**TINY, **settings}).build(seed=0)
    folder.mkdir()
    kind = "reward" if model.config.head == "scalar" else "policy"
    files = save_model(folder, model, Tokenizer.byte_level())
    write_manifest(folder, kind=kind, made_by="test", config={}, files=files)
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default model, exported."""
    root = tmp_path_factory.mktemp("export")
    export_hf(saved(root / "ours"), root / "theirs", check=True)
    return root / "theirs"


def test_the_folder_holds_what_others_read(exported: Path) -> None:
    names = {path.name for path in exported.iterdir()}
    assert names == {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "model.safetensors",
        "README.md",
        "manifest.json",
    }
    config = json.loads((exported / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"] and config["model_type"] == "llama"
    assert config["torch_dtype"] == config["dtype"] == "float32"
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10_000.0
    assert config["head_dim"] == 8 and (config["bos_token_id"], config["pad_token_id"]) == (256, 259)
    assert json.loads((exported / "generation_config.json").read_text())["eos_token_id"] == [258, 256]
    table = json.loads((exported / "tokenizer_config.json").read_text())
    assert table["tokenizer_class"] == "PreTrainedTokenizerFast" and table["clean_up_tokenization_spaces"] is False
    with safe_open(exported / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"} and "lm_head.weight" not in file.keys()  # noqa: SIM118


def test_the_export_knows_its_family_tree(exported: Path, tmp_path: Path) -> None:
    assert verify_artifact(exported).kind == "huggingface"
    import_hf(exported, tmp_path / "again")
    kinds = [one.kind for _, _, one in family(read_manifest(tmp_path / "again"))]
    assert kinds == ["policy", "huggingface", "policy"]


def test_an_export_is_imported_with_its_own_tokenizer(exported: Path) -> None:
    assert read_hf(exported).tokenizer.sha256 == Tokenizer.byte_level().sha256


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"feedforward": "relu2"}, "feedforward.kind='relu2'"),
        ({"positions": "sinusoidal"}, "positions.kind='sinusoidal'"),
        ({"layout": "post"}, "layout='post'"),
        ({"attention": {"soft_cap": 30.0}}, "attention.soft_cap=30.0"),
        ({"attention": {"window": 8, "sinks": 2}}, "attention.sinks=2"),
        ({"attention": {"causal": False}}, "attention.causal=False"),
        ({"attention": {"qk_norm": "head", "qk_norm_eps": 1e-3}}, "attention.qk_norm_eps=0.001"),
        ({"attention": {"scale": 0.5}}, "attention.scale=0.5"),
        ({"embedding_scale": 3.0}, "embedding_scale=3.0"),
        ({"norm": "layernorm"}, "norm.kind='layernorm'"),
        ({"attention": {"qkv_bias": True}}, "Qwen2 has no tokenizer but its own"),
    ],
)
def test_what_no_family_has_is_refused_by_name(tmp_path: Path, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match="no Hugging Face family known here fits") as caught:
        export_hf(saved(tmp_path / "ours", **settings), tmp_path / "theirs")
    assert named in caught.value.message
    assert not (tmp_path / "theirs").exists()


def test_settings_that_only_training_needs_stand_in_no_way() -> None:
    settings = {"dropout": 0.1, "initial_std": 0.5, "attention": {"backend": "manual", "dropout": 0.1}}
    assert fitting_family(ModelConfig.model_validate({**TINY, **settings}), {}).model_type == "llama"


def test_check_finds_a_wrong_key_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def swapped(rules: Any, tensors: Any) -> dict[str, torch.Tensor]:
        found = original(rules, tensors)
        first, second = "model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"
        return {**found, first: found[second], second: found[first]}

    original = writing.write_tensors
    monkeypatch.setattr(writing, "write_tensors", swapped)
    with pytest.raises(ArtifactError, match=r"differs in blocks\.0\.feedforward\.gate_up\.weight"):
        export_hf(saved(tmp_path / "ours"), tmp_path / "theirs", check=True)
    assert not (tmp_path / "theirs").exists()


def test_both_commands(tmp_path: Path) -> None:
    runner = CliRunner()
    done = runner.invoke(app, ["export", "hf", str(saved(tmp_path / "ours")), str(tmp_path / "theirs"), "--check"])
    assert done.exit_code == 0 and "huggingface" in done.stdout and "LlamaForCausalLM" in done.stdout
    done = runner.invoke(app, ["import", "hf", str(tmp_path / "theirs"), "--out", str(tmp_path / "again"), "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["config"] == {"model_type": "llama", "chat": "chatml"}
    options = ["--chat", "plain", "--context", "16", "--out", str(tmp_path / "short")]
    assert runner.invoke(app, ["import", "hf", str(tmp_path / "theirs"), *options]).exit_code == 0
    short = load_checkpoint(tmp_path / "short")
    assert (short.model.config.context, short.tokenizer.special.chat) == (16, "plain")


def test_an_export_overwrites_nothing(exported: Path) -> None:
    with pytest.raises(ArtifactError, match="exists already"):
        export_hf(exported.parent / "ours", exported)


def copied(exported: Path, folder: Path) -> Path:
    folder.mkdir()
    for path in exported.iterdir():
        if path.name != "manifest.json":
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_pickles_are_refused(exported: Path, tmp_path: Path) -> None:
    folder = copied(exported, tmp_path / "theirs")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ArtifactError, match="pickle"):
        import_hf(folder, tmp_path / "ours")


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("config.json", b"{", "not valid JSON"),
        ("config.json", b"[]", "no JSON table"),
        ("config.json", b"{}", "lacks 'model_type'"),
        ("model.safetensors", b"\x08\0\0\0\0\0\0\0garbage!", "not a readable safetensors"),
        ("tokenizer.json", b"{}", "no vocabulary"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"7": 3}}', "no token at '7'"),
        ("model.safetensors.index.json", b"{}", "no weight_map"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "../a"}}', "outside the folder"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "b.safetensors"}}', "is missing"),
    ],
)
def test_damaged_folders_are_one_sentence(
    exported: Path, tmp_path: Path, name: str, content: bytes, named: str
) -> None:
    folder = copied(exported, tmp_path / "theirs")
    (folder / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=named):
        import_hf(folder, tmp_path / "ours")


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(exported: Path, tmp_path: Path, missing: str) -> None:
    folder = copied(exported, tmp_path / "theirs")
    (folder / missing).unlink()
    with pytest.raises(ArtifactError, match=missing):
        import_hf(folder, tmp_path / "ours")


@pytest.mark.parametrize("model_type", builtin_families())
def test_key_maps_name_every_tensor_once(model_type: str) -> None:
    attention: dict[str, Any] = {"heads": 4, "kv_heads": 4}
    attention |= {"qwen2": {"qkv_bias": True}, "gpt2": {"qkv_bias": True, "out_bias": True}}.get(model_type, {})
    attention |= {"qwen3": {"qk_norm": "head"}, "olmo2": {"qk_norm": "width"}}.get(model_type, {})
    one = builtin_families()[model_type]
    parts: dict[str, Any] = {name: {"kind": kind} for name, kind in one.parts.items()}
    parts["attention"] |= attention
    if model_type == "gpt2":
        parts["feedforward"] |= {"bias": True}
    config = ModelConfig.model_validate({**TINY, **parts, "tie_embeddings": False})
    rules = one.all_rules(config)
    state = config.build(seed=0).state_dict()
    assert sorted(rule.ours for rule in rules) == sorted(state)
    names = [name for rule in rules for name in rule.theirs]
    assert len(set(names)) == len(names)
    for rule in rules:
        assert torch.equal(rule.join(rule.split(state[rule.ours])), state[rule.ours])


def test_no_package_imports_transformers() -> None:
    packages = Path(llmcore.__file__).parents[3] if "site-packages" not in llmcore.__file__ else None
    roots = list(packages.glob("*/src")) if packages else [Path(llmcore.__file__).parent]
    assert roots
    for path in (path for root in roots for path in root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "transformers" for name in names), path
