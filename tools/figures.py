"""What the quickstart measured: the evaluations' figures, and whether each promise is kept."""

import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from llmcore.manifest import family, read_manifest
from llmcore.train.metrics import read_metrics

POLICIES = ("pretrain", "sft", "ppo", "grpo")
STAGES = ("pretrain", "sft", "reward", "ppo", "grpo")
GIBIBYTE = 2**30
ASK_DEVICE = """
import torch
from llmcore.train.device import resolve_device

found = resolve_device("auto")
print(torch.cuda.get_device_name(found) if found.type == "cuda" else "none" if found.type == "cpu" else found)
"""


class Claim(NamedTuple):
    """A promise of the quickstart, what was measured, and whether that keeps it."""

    what: str
    value: str
    beside: str
    kept: bool


def collect(out: Path) -> dict[str, Any]:
    """The figures of every evaluation that was made, by stage."""
    found = {name: read_json(out / "eval" / f"{name}.json") for name in ("pretrain", "sft", "reward", "rl", "rulers")}
    figures: dict[str, Any] = {name: value for name, value in found.items() if value is not None}
    for name in ("sft", "rl"):
        if name in figures:
            figures[name] = {Path(folder).name: value for folder, value in figures[name].items()}
    return figures


def samples(out: Path, *, count: int = 14) -> list[dict[str, Any]]:
    """One sampled answer of every policy to the same held-out prompts, of as many shapes as fit."""
    path = out / "eval" / "answers.jsonl"
    if not path.exists():
        return []
    by_prompt: dict[str, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["way"] != "sampled":
            continue
        entry = by_prompt.setdefault(row["prompt"], {"prompt": row["prompt"], "answer": row["answer"], "given": {}})
        entry["given"][Path(row["policy"]).name] = {"text": row["completion"], "right": row["rewards"]["literal"] == 1}
    shapes: dict[str, int] = {}
    rows = []
    for entry in by_prompt.values():
        shape = "".join(c for c in entry["prompt"] if not c.isalnum() and c not in " ,_")
        shapes[shape] = shapes.get(shape, 0) + 1
        rows.append((shapes[shape], entry))
    return [entry for _, entry in sorted(rows, key=lambda row: row[0])[:count]]


def curves(out: Path) -> dict[str, list[dict[str, Any]]]:
    """Every line of metrics of each stage."""
    return {name: read_metrics(out / name / "run" / "metrics.jsonl") for name in STAGES}


def family_tree(out: Path) -> list[dict[str, Any]]:
    """Each artifact of the line once: its kind, maker and parents."""
    people: dict[str, dict[str, Any]] = {}
    for name in STAGES:
        if not (out / name / "manifest.json").exists():
            continue
        for _, _, member in family(read_manifest(out / name)):
            people.setdefault(
                member.id,
                {
                    "id": member.id,
                    "kind": member.kind,
                    "made_by": member.made_by,
                    "parents": {role: parent.id for role, parent in member.parents.items()},
                },
            )
        people[read_manifest(out / name).id]["name"] = name
    return list(people.values())


def machine() -> dict[str, str]:
    """What this ran on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = {"processor": processor(), "cores": str(cores), "system": f"{platform.system()} {platform.machine()}"}
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        facts["memory"] = f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / GIBIBYTE:.0f} GiB"
    libraries = {"Python": platform.python_version(), "torch": version("torch")}
    return facts | {"accelerator": accelerator()} | libraries


@cache
def accelerator() -> str:
    """What `device = auto` takes beside the processor; asked in a process of its own, which spares this one torch."""
    done = subprocess.run([sys.executable, "-c", ASK_DEVICE], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def processor() -> str:
    """The name of the CPU, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def claims(record: Mapping[str, Any]) -> list[Claim]:
    """What the quickstart promises, each beside what it is measured against."""
    figures = record["figures"]
    checks = (text_claim, answer_claim, reward_claim, policy_claims, cost_claims)
    return [claim for check in checks for claim in check(figures if check is not cost_claims else record)]


def text_claim(figures: Mapping[str, Any]) -> Iterator[Claim]:
    if not {"pretrain", "rulers"} <= figures.keys():
        return
    found, rulers = figures["pretrain"], figures["rulers"]
    bits = found["bits_per_byte"]
    names = ("xz -9", "gzip -9", "unigram")
    beside = " · ".join(f"{name} {rulers[name]:.2f}" for name in names)
    value = f"{bits['value']:.3f} [{bits['low']:.3f}, {bits['high']:.3f}]"
    kept = bits["high"] < min(rulers[name] for name in names)
    yield Claim("pretraining: bits per byte of unseen text", value, beside, kept)


def answer_claim(figures: Mapping[str, Any]) -> Iterator[Claim]:
    if "sft" not in figures:
        return
    base, tuned = figures["sft"]["pretrain"], figures["sft"]["sft"]
    kept = tuned["sampled"]["low"] > base["sampled"]["high"] and tuned["loss"] < base["loss"]
    loss = f"loss {tuned['loss']:.2f}, base {base['loss']:.2f}"
    beside = f"base {share(base['sampled'])} · {loss}"
    yield Claim("fine-tuning: right answers to unseen questions", share(tuned["sampled"]), beside, kept)


def reward_claim(figures: Mapping[str, Any]) -> Iterator[Claim]:
    if "reward" not in figures:
        return
    found = figures["reward"]
    beside = f"‘the longer answer wins’ {share(found['ruler'])} · wanted 80 %"
    yield Claim(
        "reward model: unseen pairs ranked right", share(found["accuracy"]), beside, found["accuracy"]["value"] >= 0.8
    )


def policy_claims(figures: Mapping[str, Any]) -> Iterator[Claim]:
    scores = figures.get("rl", {})
    for name, wanted in (("ppo", 0.0), ("grpo", 0.15)):
        if name not in scores:
            continue
        gain, kl, length = (scores[name][f"sampled/{key}"] for key in ("gain", "kl", "length"))
        before, after = scores["sft"]["sampled/rewards/literal"], scores[name]["sampled/rewards/literal"]
        beside = (
            f"{100 * before['value']:.1f} % → {100 * after['value']:.1f} % right · "
            f"KL {kl['value']:.2f} nats · {length['value']:.1f} tokens"
        )
        value = f"{100 * gain['value']:+.1f} points [{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}]"
        kept = gain["low"] > 0 and gain["value"] >= wanted
        yield Claim(f"{name.upper()}: true reward above fine-tuning", value, beside, kept)


def cost_claims(record: Mapping[str, Any]) -> Iterator[Claim]:
    jobs = record["jobs"].values()
    seconds, peak = total_seconds(record), max((job["peak_bytes"] for job in jobs), default=0)
    yield Claim("time, all steps", clock(seconds), "wanted 10:00 on two cores", seconds <= 600)
    yield Claim("largest memory of a process", f"{peak / GIBIBYTE:.2f} GiB", "wanted 4 GiB", peak < 4 * GIBIBYTE)


def total_seconds(record: Mapping[str, Any]) -> float:
    """Time by the clock; commands side by side count as one."""
    return math.fsum(step["seconds"] for step in record["steps"].values())


def share(interval: Mapping[str, float]) -> str:
    """A share with its interval, in per cent."""
    return f"{100 * interval['value']:.1f} % [{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]"


def clock(seconds: float) -> str:
    """75 -> `1:15`."""
    return f"{int(seconds // 60)}:{int(seconds % 60):02}"


def read_json(path: Path) -> Any:
    """The contents of a JSON file, or None where there is none."""
    return json.loads(path.read_bytes()) if path.exists() else None
