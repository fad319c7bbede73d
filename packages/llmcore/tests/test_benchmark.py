import json
from pathlib import Path

import pytest
import torch

from llmcore.checkpoint import Checkpoint, load_checkpoint, save_model
from llmcore.evaluate.benchmark import read_tasks, report, report_all, report_lines, score_task, score_tasks
from llmcore.evaluate.passes import pass_at
from llmcore.evaluate.tasks import Item, Option, Task
from llmcore.intervals import share
from llmcore.manifest import write_manifest
from llmcore.model.config import ModelConfig
from llmcore.tokenizer import Tokenizer

ECHO = {"vocab_size": 260, "width": 260, "depth": 1, "context": 40, "attention": {"heads": 2}}


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """A model that says the byte before it once more, and one that finds every byte equally likely."""
    found = {}
    for name, scale in (("echo", 0.5), ("uniform", 0.0)):
        folder = tmp_path_factory.mktemp(name)
        model = ModelConfig.model_validate(ECHO).build(seed=0)
        with torch.no_grad():
            for block in model.blocks.parameters():
                block.zero_()
            model.embedding.weight.copy_(torch.eye(260) * scale)
        files = save_model(folder, model, Tokenizer.byte_level())
        write_manifest(folder, kind="policy", made_by="test", config={}, files=files)
        found[name] = load_checkpoint(folder)
    return found


def choice(context: str, *choices: str, right: int = 0, subtask: str = "") -> Item:
    return Item(tuple(Option(context, one) for one in choices), right, subtask, question=context)


def test_the_three_ways_to_compare_choices_differ_as_they_should(policies: dict[str, Checkpoint]) -> None:
    """Repeated bytes are likely, others not: the sum favours what is short, per byte what repeats."""
    task = Task("t", "choice", [choice("a", "x", "aaaaaaaaaaaaaaaaaaxxxx"), choice("a", "ab", "a", right=1)])
    found = score_task(policies["echo"], task).judged
    assert found[0] == {"accuracy": 1.0, "accuracy_per_byte": 0.0, "accuracy_per_token": 0.0}
    assert found[1] == {"accuracy": 1.0, "accuracy_per_byte": 1.0, "accuracy_per_token": 1.0}


def test_ties_are_wrong_and_chance_is_the_mean_over_the_items(policies: dict[str, Checkpoint]) -> None:
    task = Task("t", "choice", [choice("a", "x", "y"), choice("a", "x", "y", "z", "w")])
    summary = report(score_task(policies["uniform"], task))
    assert summary["accuracy"] == share(0, 2)._asdict() and summary["chance"] == 0.375


def test_a_continuation_is_right_if_greedy_decoding_says_it(policies: dict[str, Checkpoint]) -> None:
    task = Task("t", "continuation", [Item((Option("go a", "aa"),), 0), Item((Option("go a", "ab"),), 0)])
    summary = report(score_task(policies["echo"], task))
    assert summary["accuracy"]["value"] == 0.5 and "chance" not in summary
    uniform = report(score_task(policies["uniform"], task))
    assert uniform["perplexity"]["value"] == pytest.approx(260.0**2, rel=1e-5)


def test_sub_tasks_stand_apart_and_what_does_not_fit_is_counted(policies: dict[str, Checkpoint]) -> None:
    items = [
        choice("a", "a", "b", subtask="easy"),
        choice("a", "b", "a", subtask="hard"),
        choice("a", "b" * 60, "a", subtask="hard"),
        choice("ab" * 30, "b", "a", subtask="hard"),
    ]
    summary = report(score_task(policies["echo"], Task("t", "choice", items)))
    assert (summary["count"], summary["left_out"], summary["cut"]) == (3, 1, 1)
    easy, hard = summary["subtasks"]["easy"], summary["subtasks"]["hard"]
    assert easy["accuracy"]["value"] == 1.0 and (hard["count"], hard["accuracy"]["value"]) == (2, 0.5)
    assert json.loads(json.dumps(summary)) == summary
    lines = "\n".join(report_lines({"t": summary}))
    assert "3 items (choice), 1 left out: longer than the context, 1 with the beginning cut off" in lines
    assert "chance 50.0%" in lines and "hard" in lines


def test_two_models_are_compared_item_by_item(policies: dict[str, Checkpoint], tmp_path: Path) -> None:
    rows = [{"sentence_good": "aaa", "sentence_bad": "aba"}, {"sentence_good": "aba", "sentence_bad": "aaa"}] * 20
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = (score_tasks(policies[name], read_tasks([path])) for name in ("uniform", "echo"))
    gain = report_all(second, first=first)[str(path)]["gain/accuracy"]
    assert gain["value"] == 0.5 and gain["low"] == pytest.approx(0.343, abs=1e-3)


def test_a_count_draws_the_same_items_every_time(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("".join(f"say {n}\n" for n in range(40)))
    [few], [again], [whole] = (read_tasks([path], count=count) for count in (20, 20, 99))
    numbers = [int(item.options[0].continuation) for item in few.items]
    assert few == again and len(whole.items) == 40
    assert numbers == sorted(set(numbers)) and len(numbers) == 20 and len({n % 2 for n in numbers}) == 2


def test_a_chat_model_is_asked_in_its_format_and_pairs_never_are(policies: dict[str, Checkpoint]) -> None:
    """The last byte before the answer is the format's newline, not the question's end."""
    task = Task("t", "choice", [choice("a", "a", "\n\nb"[0:1] + "a")])
    assert score_task(policies["echo"], task).judged != score_task(policies["echo"], task, chat=True).judged
    pairs = Task("p", "pair", [Item((Option("", "aa"), Option("", "ab")), 0)])
    assert score_task(policies["echo"], pairs, chat=True) == score_task(policies["echo"], pairs)


def test_pass_at_k() -> None:
    assert [pass_at(1, 4, k) for k in (1, 2, 4)] == [0.25, 0.5, 1.0] and pass_at(0, 4, 4) == 0.0
