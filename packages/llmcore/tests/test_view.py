"""A live bar on a terminal, plain lines elsewhere, nothing when quiet."""

import io

import pytest
from rich.console import Console

from llmcore.train.view import (
    LiveView,
    PlainView,
    QuietView,
    View,
    amount,
    choose_view,
    duration,
    number,
    sparkline,
)

ROW = {"step": 3, "loss": 2.5, "lr": 4.9e-4, "grad_norm": 0.83, "tokens": 96, "tokens_per_s": 36123.4, "seconds": 1.0}


def drive(view: View) -> None:
    view.start("llmx run · tiny", {"model": "7.4 M parameters [x]"})
    view.begin(step=2, steps=5)
    view.step(ROW)
    view.log(ROW)
    view.log({"step": 3, "val_loss": 2.75})
    view.say("saved step 3")
    view.step({**ROW, "step": 4})
    view.pause()
    view.end({"loss": "2.5"}, {"model": "runs/tiny", "next": "llmy run --base runs/tiny"})


def console(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=100, soft_wrap=not terminal, color_system=None)


def shown(used: Console) -> str:
    assert isinstance(used.file, io.StringIO)
    return used.file.getvalue()


def test_plain_lines_have_the_names_of_the_metrics_and_nothing_is_redrawn() -> None:
    used = console(terminal=False)
    drive(PlainView(used))
    text = shown(used)
    assert "step=3 loss=2.5 lr=0.00049 grad_norm=0.83 tokens=96 tokens_per_s=36123 seconds=1" in text.splitlines()
    assert "step=3 val_loss=2.75" in text.splitlines()
    assert "7.4 M parameters [x]" in text
    assert "\r" not in text
    assert "\x1b" not in text


def test_plain_lines_say_how_long_it_will_take() -> None:
    used = console(terminal=False)
    view = PlainView(used)
    view.begin(step=0, steps=100)
    for step, seconds in ((1, 60.0), (2, 61.0), (3, 62.0)):  # the first step of a start is slow, and counts for nothing
        view.step({**ROW, "step": step, "seconds": seconds})
        view.log({"step": step, "seconds": seconds})
    assert shown(used).splitlines() == ["step=1 seconds=60", "step=2 seconds=61 eta=1:38", "step=3 seconds=62 eta=1:37"]


def test_a_terminal_gets_a_bar_with_loss_validation_and_speed() -> None:
    used = console(terminal=True)
    view = LiveView(used)
    drive(view)
    text = shown(used)
    for expected in (
        "llmx run · tiny",
        "4/5",
        "80%",
        "loss 2.5 (ema 2.5)",
        "val loss 2.75 @3",
        "|g| 0.83",
        "tok/s 36123",
    ):
        assert expected in text
    assert "saved step 3" in text
    assert "llmy run --base runs/tiny" in text
    assert view.live is None


def test_quiet_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    drive(choose_view(quiet=True))
    assert capfd.readouterr() == ("", "")


def test_the_view_follows_the_terminal_and_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    assert isinstance(choose_view(quiet=False, console=console(terminal=True)), LiveView)
    assert isinstance(choose_view(quiet=False, console=console(terminal=False)), PlainView)
    assert isinstance(choose_view(quiet=True, console=console(terminal=True)), QuietView)
    monkeypatch.setenv("CI", "true")
    assert isinstance(choose_view(quiet=False, console=console(terminal=True)), PlainView)


def test_everything_is_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    drive(choose_view(quiet=False))
    out, err = capfd.readouterr()
    assert out == ""
    assert "saved step 3" in err


def test_a_sparkline_goes_from_low_to_high() -> None:
    assert sparkline([]) == ""
    assert sparkline([1, 2, 3, 4, 5, 6, 7, 8]) == "▁▂▃▄▅▆▇█"
    assert sparkline([2.0, 2.0]) == "▁▁"


def test_numbers_amounts_and_durations() -> None:
    assert [number(v) for v in (3, 0.000123456, 12345.6, "x", None)] == ["3", "0.0001235", "12346", "x", "None"]
    assert [amount(v) for v in (12, 999.4, 999.7, 1234, 7_400_000)] == ["12", "999", "1 k", "1.23 k", "7.4 M"]
    assert amount(2.5e9, "B") == "2.5 GB"
    assert [duration(s) for s in (5, 75, 3700)] == ["0:05", "1:15", "1:01:40"]
