"""A norm of ten lines from an outside package joins by entry point, loads from checkpoints, is named when missing."""

import json
from pathlib import Path

import pytest

from conftest import QUICK, TINY, Line
from forked import run
from outside import install

SCALE_NORM = """
import torch
from llmcore.extensions import Part

class ScaleNorm(Part):
    kind: str = "scale"
    gain: float = 1.0

    def build(self, width: int) -> torch.nn.Module:
        return Scale(self.gain * width**0.5)

class Scale(torch.nn.Module):
    def __init__(self, gain: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([gain]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (self.weight / x.norm(dim=-1, keepdim=True).clamp(min=1e-5)).to(x.dtype)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    offers = {"llmcore.norm": "scale = scale_norm:ScaleNorm"}
    return install(tmp_path_factory.mktemp("site"), "scale-norm", SCALE_NORM, offers)


@pytest.fixture(scope="module")
def trained(line: Line, site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model with the outside norm, and a chat model made from it."""
    root = tmp_path_factory.mktemp("outside")
    base, out = root / "base", root / "sft"
    settings = ["model.norm.kind=scale", "model.norm.gain=0.5"]
    done = run(
        "llmpretrain", "run", "--data", line.tokens, "--out", base, *TINY, *QUICK, *settings, cwd=root, site=site
    )
    assert done.code == 0, done.err
    done = run("llmsft", "run", "--base", base, "--data", line.chats, "--out", out, *QUICK, cwd=root, site=site)
    assert done.code == 0, done.err
    return out


def test_an_outside_norm_trains_and_loads(trained: Path, site: Path) -> None:
    manifest = json.loads((trained / "manifest.json").read_text())
    assert manifest["needs"] == manifest["parents"]["base"]["needs"] == {"scale-norm": "1.0"}
    assert json.loads((trained / "model.json").read_text())["norm"] == {"kind": "scale", "gain": 0.5}
    done = run("llmcore", "generate", trained, "--prompt", "def", "--json", cwd=trained, site=site)
    assert done.code == 0, done.err
    assert json.loads(done.out)["completions"][0]["tokens"] > 0


@pytest.mark.parametrize("words", [["generate"], ["inspect"], ["verify"], ["chat"]])
def test_a_missing_package_is_named_in_one_sentence(trained: Path, words: list[str]) -> None:
    done = run("llmcore", *words, trained, cwd=trained.parent)
    assert done.code == 2
    assert done.err.startswith(f"error: {trained} needs scale-norm 1.0, which is not installed"), done.err
    assert len(done.err.splitlines()) == 2, done.err


def test_doctor_lists_what_is_installed(trained: Path, site: Path) -> None:
    assert "scale (scale_norm:ScaleNorm)" in run("llmcore", "doctor", cwd=trained.parent, site=site).out
    assert "scale_norm" not in run("llmcore", "doctor", cwd=trained.parent).out


def test_a_kind_that_nobody_offers_and_a_package_that_does_not_import(line: Line, tmp_path: Path) -> None:
    words = ["llmpretrain", "run", "--data", line.tokens, "--out", tmp_path / "out", "model.norm.kind=scale"]
    done = run(*words, cwd=tmp_path)
    assert done.code == 2
    assert "kind 'scale' is none of" in done.err
    broken = install(
        tmp_path / "site", "broken-norm", "import no_such_thing", {"llmcore.norm": "scale = broken_norm:X"}
    )
    done = run(*words, cwd=tmp_path, site=broken)
    assert done.code == 2
    assert "llmcore.norm 'scale' (broken_norm:X) cannot be imported: No module named 'no_such_thing'" in done.err
