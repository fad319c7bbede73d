"""The quickstart's report: the line that is run once, the figures it collects, and the page made of them."""

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from llmcore.manifest import Manifest, write_manifest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import figures  # noqa: E402
import report  # noqa: E402
from line import Job, Line, Step, StepError, read_record  # noqa: E402
from llmcore import charts  # noqa: E402

EVIL = "<script>alert('x')</script>\n\x1b[31m"


def printing(name: str, out: Path, code: str, *, inputs: tuple[Path, ...] = ()) -> Job:
    return Job(name, ("python", "-c", code), out / f"{name}.json", inputs)


def step(*jobs: Job, together: bool = False) -> Step:
    return Step("only", "only: a step", jobs, together)


def artifact(folder: Path, *, kind: str, made_by: str, parents: dict[str, Manifest], text: str = "") -> Manifest:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "contents").write_text(f"{kind} {text}")
    return write_manifest(folder, kind=kind, made_by=made_by, config={}, parents=parents, files=["contents"])


def interval(value: float, half: float = 0.02) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def write_quickstart(out: Path) -> None:
    """What the stages leave: artifacts with their manifests, metrics, and the evaluations' output."""
    text = Manifest(kind="stdlib", made_by="")
    tokens = artifact(out / "data/tokens", kind="tokens", made_by="llmdata tokens", parents={"text": text})
    prompts = artifact(out / "data/prompts", kind="prompts", made_by="llmdata records", parents={})
    base = artifact(out / "pretrain", kind="policy", made_by="llmpretrain run", parents={"data": tokens})
    sft = artifact(out / "sft", kind="policy", made_by="llmsft run", parents={"base": base})
    reward = artifact(out / "reward", kind="reward", made_by="llmreward run", parents={"base": sft})
    for name in ("ppo", "grpo"):
        parents = {"policy": sft, "reward": reward, "prompts": prompts}
        artifact(out / name, kind="policy", made_by=f"llmrl {name}", parents=parents, text=name)
    for name in figures.STAGES:
        (out / name / "run").mkdir()
        rows = [
            {"step": n, "loss": 5 / n, "accuracy": 1 - 1 / n, "rewards/literal/mean": n / 60,
             "rewards/reward/mean": n / 30, "objective/kl": n / 9, "completions/mean_length": 8.0}
            for n in range(1, 31)
        ]  # fmt: skip
        rows[-1] |= {"val_bits_per_byte": 1.5, "val_loss": 0.2, "val_accuracy": 0.9, "val_rewards/literal": 0.5}
        (out / name / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores = {
        str(out / name): {
            f"{way}/{key}": interval(value)
            for way in ("sampled", "greedy")
            for key, value in (("rewards/literal", right), ("gain", right - 0.4), ("kl", 1.5), ("length", 7.0))
        }
        for name, right in (("sft", 0.4), ("pretrain", 0.01), ("ppo", 0.5), ("grpo", 0.6))
    }
    answers = {"loss": 0.5, "sampled": interval(0.4), "greedy": interval(0.5), "asked": 100}
    wrong = {"loss": 5.0, "sampled": interval(0.0, 0.0), "greedy": interval(0.0, 0.0), "asked": 100}
    printed: dict[str, Any] = {
        "pretrain": {"loss": 1.0, "bits_per_byte": interval(1.5)},
        "rulers": {"bytes": 1000, "unigram": 4.6, "gzip -9": 2.0, "xz -9": 1.7},
        "sft": {str(out / "pretrain"): wrong, str(out / "sft"): answers},
        "reward": {"accuracy": interval(0.9), "ruler": interval(0.5), "by_length": {"as_long": interval(0.9)}},
        "rl": scores,
    }
    (out / "eval").mkdir()
    for name, value in printed.items():
        (out / "eval" / f"{name}.json").write_text(json.dumps(value))
    lines = [
        {
            "policy": str(out / name),
            "way": "sampled",
            "prompt": prompt,
            "answer": "3",
            "completion": text,
            "rewards": {"literal": right},
        }
        for name, text, right in (("pretrain", EVIL, 0.0), ("sft", "2", 0.0), ("ppo", "3", 1.0), ("grpo", "3", 1.0))
        for prompt in ("len('abc')", "1 + 2")
    ]
    (out / "eval" / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def quickstart(tmp_path: Path) -> Path:
    """A folder as the quickstart leaves it, with the report.json that the quickstart's own code writes."""
    out = tmp_path / "runs" / "quickstart"
    write_quickstart(out)
    rewards = {"ppo": f"{out / 'reward'} + literal", "grpo": "literal"}
    line = Line(out, fast=False, text="a text", machine=figures.machine(), rewards=rewards)
    line.run([step(printing("count", tmp_path, "print([1, 2])"))], keep_going=False)
    line.record["steps"] = {"pretrain": line.record["steps"]["only"]}
    line.record |= {
        "figures": figures.collect(out),
        "samples": figures.samples(out),
        "family": figures.family_tree(out),
    }
    line.save()
    return out


class Page(HTMLParser):
    """Tags and text of a page; complains about a tag that closes nothing."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, _attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        void = {"meta", "br", "line", "rect", "circle", "path"}
        if tag not in void or (not self.get_starttag_text().endswith("/>") and tag not in void):  # type: ignore[union-attr]
            self.open.append(tag)

    def handle_startendtag(self, tag: str, _attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag != "circle":
            assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_page_is_whole_and_asks_nothing_of_the_network(quickstart: Path) -> None:
    path = report.write(quickstart)
    text = path.read_text(encoding="utf-8")
    assert path == quickstart / "report.html"
    assert not re.search(r"https?://|@import|url\(|<link|<img|<script", text)
    page = Page(text)
    words = " ".join(page.words)
    for title in ("What it had to show", "From guessing to answering", "The same questions", "A model that judges",
                  "PPO", "GRPO", "Family tree", "Machine", "How to go on"):  # fmt: skip
        assert title in words, title
    assert page.tags.count("svg") == 2 + 2 + 2 + 4 + 4 + 1
    assert "prefers-color-scheme: dark" in text


def test_the_page_names_the_accelerator(quickstart: Path) -> None:
    line = Line(quickstart)
    for accelerator, shown in (("none", ", no GPU<"), ("NVIDIA T4", ", NVIDIA T4<"), ("unknown", " cores<")):
        line.record["machine"]["accelerator"] = accelerator
        line.save()
        assert shown in report.write(quickstart).read_text(encoding="utf-8")


def test_what_a_model_says_stays_text(quickstart: Path) -> None:
    text = report.write(quickstart).read_text(encoding="utf-8")
    assert "<script" not in text and "\x1b" not in text
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;⏎·[31m" in text


def test_same_prompts_stand_side_by_side_with_their_marks(quickstart: Path) -> None:
    rows = figures.samples(quickstart)
    assert [row["prompt"] for row in rows] == ["len('abc')", "1 + 2"]
    assert {name: given["right"] for name, given in rows[0]["given"].items()} == {
        "pretrain": False, "sft": False, "ppo": True, "grpo": True,
    }  # fmt: skip


def test_every_promise_is_judged_by_its_own_bar(quickstart: Path) -> None:
    record = read_record(quickstart)
    claims = figures.claims(record)
    assert len(claims) == 7 and all(claim.kept for claim in claims)
    assert claims[0].value == "1.500 [1.480, 1.520]" and "gzip -9 2.00" in claims[0].beside
    record["figures"]["pretrain"]["bits_per_byte"] = interval(1.69)  # the interval reaches beyond xz
    record["figures"]["reward"]["accuracy"] = interval(0.79)
    record["figures"]["rl"]["ppo"]["sampled/gain"] = interval(0.01)  # it holds zero
    record["figures"]["rl"]["grpo"]["sampled/gain"] = interval(0.14)  # sure, but less than 15 points
    record["figures"]["sft"]["pretrain"]["sampled"] = interval(0.39)
    record["steps"]["pretrain"]["seconds"] = 601
    record["jobs"]["count"]["peak_bytes"] = 5 << 30
    assert not any(claim.kept for claim in figures.claims(record))


def test_figures_that_are_missing_leave_the_rest(quickstart: Path) -> None:
    for name in ("rl", "reward"):
        (quickstart / "eval" / f"{name}.json").unlink()
    line = Line(quickstart)
    line.record["figures"] = figures.collect(quickstart)
    line.save()
    assert [claim.what.partition(":")[0] for claim in figures.claims(line.record)] == [
        "pretraining", "fine-tuning", "time, all steps", "largest memory of a process",
    ]  # fmt: skip
    assert "From guessing to answering" not in report.write(quickstart).read_text(encoding="utf-8")


def test_family_tree_has_everyone_once_with_parents_to_the_left(quickstart: Path) -> None:
    from familytree import arrange

    people = {member["id"]: member for member in figures.family_tree(quickstart)}
    assert sorted(member["kind"] for member in people.values()) == [
        "policy", "policy", "policy", "policy", "prompts", "reward", "stdlib", "tokens",
    ]  # fmt: skip
    places = arrange(people)
    assert len(set(places.values())) == len(people)
    for name, member in people.items():
        assert all(places[parent][0] < places[name][0] for parent in member["parents"].values())


def test_charts_hold_every_point_within_their_frame() -> None:
    points = [(float(n), float(n * n)) for n in range(50)]
    drawn = charts.line_chart([charts.Series("square", points)], x_name="steps", rulers=[charts.Ruler("top", 3000.0)])
    assert drawn.count("<circle") == 50
    heights = [float(y) for y in re.findall(r'cy="([-\d.]+)"', drawn)]
    assert min(heights) >= charts.TOP - 0.1 and max(heights) <= charts.HEIGHT - charts.BOTTOM + 0.1
    assert heights == sorted(heights, reverse=True)
    assert "nothing was recorded" in charts.line_chart([charts.Series("none", [])], x_name="steps")
    assert "NaN" not in charts.line_chart([charts.Series("flat", [(1.0, 2.0)])], x_name="steps")


def test_what_is_complete_is_not_run_again(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    given = artifact(tmp_path / "input", kind="tokens", made_by="a test", parents={})
    assert given.id
    tally = f"f = open({str(tmp_path / 'tally')!r}, 'a+'); print(f.write('x') and f.tell())"
    job = printing("count", folder, tally, inputs=(tmp_path / "input",))
    for _ in range(3):
        assert Line(folder).run([step(job)], keep_going=False) == 0
    assert json.loads(job.out.read_text()) == 1
    job.out.write_text("tampered")
    Line(folder).run([step(job)], keep_going=False)
    assert json.loads(job.out.read_text()) == 2
    artifact(tmp_path / "input", kind="tokens", made_by="a test", parents={}, text="other")
    Line(folder).run([step(job)], keep_going=False)
    assert json.loads(job.out.read_text()) == 3
    entry = read_record(folder)["jobs"]["count"]
    assert entry["seconds"] > 0 and entry["peak_bytes"] > 1 << 20


def test_a_failure_ends_the_line_unless_it_keeps_going(tmp_path: Path) -> None:
    bad = printing("bad", tmp_path, "raise SystemExit(2)")
    good = printing("good", tmp_path, "print(1)")
    steps = [Step("one", "one: bad", (bad,)), Step("two", "two: good", (good,))]
    with pytest.raises(StepError) as failed:
        Line(tmp_path).run(steps, keep_going=False)
    assert failed.value.code == 2 and failed.value.job == bad
    assert not good.out.exists() and not bad.out.exists()
    assert Line(tmp_path).run(steps, keep_going=True) == 2
    assert good.out.exists()
    assert read_record(tmp_path)["jobs"]["bad"]["code"] == 2


def test_commands_side_by_side_are_all_waited_for(tmp_path: Path) -> None:
    jobs = [printing(name, tmp_path, "import time; time.sleep(0.2); print(7)") for name in "abcd"]
    assert Line(tmp_path).run([step(*jobs, together=True)], keep_going=False) == 0
    assert [json.loads(job.out.read_text()) for job in jobs] == [7] * 4
    slow = printing("slow", tmp_path, "import time; time.sleep(60)")
    bad = printing("bad", tmp_path, "raise SystemExit(2)")
    line = Line(tmp_path)
    with pytest.raises(StepError):
        line.run([step(slow, bad, together=True)], keep_going=False)
    assert line.record["steps"]["only"]["seconds"] < 30
