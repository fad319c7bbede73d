"""Which device and precision to train on, and why: resolved once, saved with the run, reused when it goes on."""

import platform
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from llmcore.errors import ConfigError
from llmcore.train.distributed import place_from_environment

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}

T = TypeVar("T")


class Placement(NamedTuple):
    """Where and how precisely a model runs, with the reason in words."""

    device: torch.device
    dtype: torch.dtype
    reason: str


def resolve(device: str, dtype: str) -> Placement:
    """The device and dtype that the settings `device` and `dtype` stand for on this machine."""
    where = resolve_device(device)
    precision, reason = choose_dtype(dtype, where)
    threads = f" × {torch.get_num_threads()} threads" if where.type == "cpu" else ""
    return Placement(where, precision, f"{where}{threads} · {NAMES[precision]} ({reason})")


def resolve_device(name: str) -> torch.device:
    """`auto` is CUDA, then Apple's MPS, then the CPU; another name is taken as it is, if it is there.

    Of the processes of one run, each takes the GPU of its number.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if mps_available() else "cpu"
    if name == "cuda" and (place := place_from_environment()).size > 1:
        name = f"cuda:{place.local}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(
            f"device {name!r} is none of auto, cpu, cuda, cuda:N, mps", hint="auto takes what is there"
        ) from None
    there = {
        "cpu": device.index in (None, 0),
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": mps_available(),
    }
    if not there.get(device.type, False):
        count = torch.cuda.device_count()
        hint = f"start at most {count} processes on it" if name.startswith("cuda:") and count else ""
        raise ConfigError(f"device {name!r} is not on this machine", hint=hint or "auto takes what is there")
    return device


def choose_dtype(name: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The precision of the activations and the reason for it: `auto` is bf16 where the hardware multiplies it."""
    if name in DTYPES:
        slow = name == "fp16" and device.type == "cpu"
        return DTYPES[name], "as set; slow on a CPU, where bf16 or fp32 is better" if slow else "as set"
    if name != "auto":
        raise ConfigError(
            f"dtype {name!r} is none of auto, {', '.join(DTYPES)}", hint="auto is bf16 where the hardware multiplies it"
        )
    if device.type == "cuda":
        capable = torch.cuda.is_bf16_supported(including_emulation=False)
        return (torch.bfloat16, "tensor cores") if capable else (torch.float32, "no bf16 on this GPU; fp16 is faster")
    if device.type == "mps":
        return torch.float32, "mps"
    flags = cpu_flags() & {"avx512_bf16", "amx_bf16"}
    return (torch.bfloat16, min(flags)) if flags else (torch.float32, "no bf16 instructions")


def cpu_flags() -> frozenset[str]:
    """The instruction sets of this CPU that decide about precision, from the kernel or else from torch."""
    wanted = {"avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile"}
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    flags = {flag for line in lines if line.startswith("flags") for flag in line.split()}
    # Older and newer torch name these checks differently and hide some: each is asked only if it is there.
    for flag, check in (("avx512_bf16", "_is_avx512_bf16_supported"), ("amx_tile", "_is_amx_tile_supported")):
        asked = getattr(torch.cpu, check, None)
        if not flags and asked is not None and asked():
            flags.add(flag)
    return frozenset(flags & wanted)


def place(model: nn.Module, placement: Placement) -> None:
    """Move a model to its device and set its precision."""
    model.to(placement.device)
    set_precision(model, placement)


def set_precision(model: nn.Module, placement: Placement) -> None:
    """Set the precision of the activations of every part of a model that has one."""
    for module in precise_modules(model):
        module.activation_dtype = placement.dtype  # type: ignore[assignment]
    if placement.device.type == "cpu":
        use_fast_fp32()


def precise_modules(model: nn.Module) -> list[nn.Module]:
    """The parts of a model whose precision can be set; in a model of somebody else's, there may be none."""
    return [module for module in model.modules() if hasattr(module, "activation_dtype")]


def use_fast_fp32() -> None:
    """Multiply fp32 matrices on the CPU through oneDNN, where that stays fp32.

    "medium" allows bf16 inside an fp32 product. Without AMX oneDNN does not use that permission: it only leaves MKL,
    whose kernel for AMD is half as fast, and errors stay those of fp32. With AMX products would be bf16, so it is
    left alone.
    """
    flags = cpu_flags()
    if "avx512f" in flags and not flags & {"amx_bf16", "amx_tile"}:
        torch.set_float32_matmul_precision("medium")


def to_device(batch: T, device: torch.device) -> T:
    """A batch on a device: a tensor, anything with a `to`, or (named) tuples, lists and dicts of these."""
    if isinstance(batch, Tensor) or callable(getattr(batch, "to", None)):
        return batch.to(device)  # type: ignore[attr-defined, no-any-return]
    if isinstance(batch, dict):
        moved: Any = {key: to_device(value, device) for key, value in batch.items()}
    elif isinstance(batch, tuple) and hasattr(batch, "_fields"):
        moved = type(batch)(*(to_device(value, device) for value in batch))
    elif isinstance(batch, tuple | list):
        moved = type(batch)(to_device(value, device) for value in batch)
    else:
        moved = batch
    return cast(T, moved)


def environment(placement: Placement) -> dict[str, str]:
    """What bit-exactness depends on beyond settings and data; a run warns when it goes on under another."""
    return {
        "torch": torch.__version__,
        "machine": platform.machine(),
        "cpu": " ".join(sorted(cpu_flags())),
        "threads": str(torch.get_num_threads()),
        "device": placement.device.type,
        "dtype": NAMES[placement.dtype],
        "processes": str(place_from_environment().size),
    }


def mps_available() -> bool:
    return torch.backends.mps.is_available()
