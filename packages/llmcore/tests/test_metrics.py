"""metrics.jsonl has every step once, whatever happened in between; TensorBoard shows the same."""

import json
import math
from pathlib import Path

import pytest

from llmcore.errors import ArtifactError, LLMError
from llmcore.train.metrics import MetricsFile, read_metrics


def write(path: Path, start: int, *rows: dict[str, float]) -> MetricsFile:
    metrics = MetricsFile(path, start=start)
    for row in rows:
        metrics.add(row)
    metrics.close()
    return metrics


def lines(path: Path) -> list[dict[str, float]]:
    content = path.read_text()
    assert content == "" or content.endswith("\n")
    return [json.loads(line) for line in content.splitlines()]


def test_figures_of_one_step_share_a_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 0, {"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5}, {"step": 2, "val_loss": 1.7}, {"step": 3})
    assert lines(path) == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5, "val_loss": 1.7}, {"step": 3}]
    assert read_metrics(path) == lines(path)


def test_going_on_drops_later_steps_and_repeats_none(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 0, *({"step": step, "loss": 1.0} for step in range(1, 8)))
    again = write(path, 4, *({"step": step, "loss": 2.0} for step in range(5, 7)))
    assert again.abandoned == 7
    assert [(row["step"], row["loss"]) for row in lines(path)] == [*((s, 1.0) for s in range(1, 5)), (5, 2.0), (6, 2.0)]


def test_an_evaluation_that_was_put_off_joins_the_line_of_its_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 0, {"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0})
    metrics = MetricsFile(path, start=2)
    assert not metrics.evaluated(2)
    metrics.add({"step": 2, "val_loss": 9.0})
    assert metrics.evaluated(2)
    metrics.add({"step": 3, "loss": 1.0})
    metrics.close()
    assert lines(path) == [
        {"step": 1, "loss": 3.0},
        {"step": 2, "loss": 2.0, "val_loss": 9.0},
        {"step": 3, "loss": 1.0},
    ]


@pytest.mark.parametrize("tail", [b'{"step": 3, "lo', b"\x00\x00\x00", b'\x00\x00\n{"step": 9, "loss": 1.0}\n'])
def test_what_a_crash_left_at_the_end_is_dropped(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 0, {"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0})
    path.write_bytes(path.read_bytes() + tail)
    write(path, 2, {"step": 3, "loss": 1.0})
    assert [row["step"] for row in lines(path)] == [1, 2, 3]


@pytest.mark.parametrize("value", ["[]", '"x"', "{}", str(10**400)])
def test_a_line_with_a_figure_that_can_be_none_is_damaged(value: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1, "loss": 1.0}}\n{{"step": 2, "loss": {value}}}\n{{"step": 3, "loss": 1.0}}\n')
    with pytest.raises(ArtifactError, match=r"metrics\.jsonl:2: not a line of metrics"):
        MetricsFile(path, start=3)


def test_a_damaged_line_among_those_to_keep_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(ArtifactError, match=r"metrics\.jsonl:2"):
        MetricsFile(path, start=3)
    assert path.read_text() == '{"step": 1}\nnonsense\n{"step": 3}\n'


def test_a_figure_that_is_no_number_becomes_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 0, {"step": 1, "loss": 1.0, "ratio": math.nan, "other": math.inf})
    assert lines(path) == [{"step": 1, "loss": 1.0, "ratio": None, "other": None}]


def test_a_full_disk_is_one_sentence_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path, start=0)
    metrics.file.close()
    with Path("/dev/full").open("r+b", buffering=0) as full:
        metrics.file = full
        with pytest.raises(LLMError, match=r"metrics\.jsonl could not be written: the disk is full"):
            metrics.add({"step": 1, "loss": 1.0})
