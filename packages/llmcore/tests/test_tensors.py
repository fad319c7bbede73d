import resource
from pathlib import Path

import pytest
import torch

from llmcore.errors import ArtifactError
from llmcore.storage import sha256_file
from llmcore.tensors import all_finite, load_tensors, save_tensors

MIXED = {
    "z": torch.arange(6.0).view(2, 3),
    "a": torch.arange(5, dtype=torch.int64),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "one": torch.tensor(2.5),
    "none": torch.zeros(0, 4),
    "mask": torch.tensor([True, False]),
}


def test_tensors_replace_a_file_that_is_mapped(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"x": torch.arange(4.0)})
    mapped = load_tensors(path)
    save_tensors(path, {"x": torch.zeros(4)})
    assert mapped["x"].tolist() == [0, 1, 2, 3] and load_tensors(path)["x"].tolist() == [0, 0, 0, 0]
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_the_hash_of_the_mapped_tensors_is_the_hash_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, MIXED)
    loaded = load_tensors(path, sha256=sha256_file(path))
    assert loaded.keys() == MIXED.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in MIXED.items())


def test_every_flipped_byte_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, MIXED)
    whole, digest = path.read_bytes(), sha256_file(path)
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(ArtifactError, match=r"a\.safetensors is damaged"):
            load_tensors(path, sha256=digest)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float16])
def test_one_number_that_is_not_finite_is_found(wrong: float, dtype: torch.dtype) -> None:
    tensor = torch.randn(7, 301).to(dtype)
    assert all_finite(tensor)
    for place in (0, 1000, -1):
        spoilt = tensor.clone()
        spoilt.view(-1)[place] = wrong
        assert not all_finite(spoilt)


def test_what_cannot_be_infinite_is_finite() -> None:
    assert all_finite(torch.zeros(0)) and all_finite(torch.tensor([1, 2])) and all_finite(torch.tensor([True]))
    assert all_finite(torch.tensor(torch.finfo(torch.float32).max))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_loading_and_checking_copies_nothing(tmp_path: Path) -> None:
    """Anonymous memory (not the mapping) grows by less than a tenth of the file."""
    path, size = tmp_path / "a.safetensors", 64 << 20
    save_tensors(path, {"x": torch.ones(size // 4)})
    digest = sha256_file(path)
    all_finite(torch.ones(1 << 16))
    before = anonymous_bytes()
    tensor = load_tensors(path, sha256=digest)["x"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert all_finite(tensor)
    assert anonymous_bytes() - before < size // 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - peak < size // 10


def anonymous_bytes() -> int:
    rows = Path("/proc/self/status").read_text().splitlines()
    return next(int(row.split()[1]) * 1024 for row in rows if row.startswith("RssAnon"))
