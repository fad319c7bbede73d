import json
from pathlib import Path

from llmcore.records import Message, Preference
from llmcore.tokenizer import Tokenizer
from llmreward.check import as_json, check_path, check_preferences, has_cycle, lines

KEYS = ("prompt", "chosen", "rejected")


def preference(prompt: str, chosen: str, rejected: str, margin: float | None = None) -> Preference:
    return Preference(prompt=(Message(role="user", content=prompt),), chosen=chosen, rejected=rejected, margin=margin)


def found(*records: Preference, held_out: tuple[Preference, ...] = ()) -> dict[str, tuple[int, tuple[int, ...]]]:
    checked = check_preferences(records, held_out=held_out)
    return {finding.name: (finding.times, finding.rows) for finding in checked.findings}


def test_clean_pairs_have_no_flaw() -> None:
    assert found(preference("p", "a", "b"), preference("q", "c", "d")) == {}


def test_each_flaw_is_found_where_it_stands() -> None:
    clean = preference("p", "a", "b")
    assert found(clean, preference("q", "c", "c")) == {"identical": (1, (1,))}
    assert found(clean, preference("q", "c d", " c  d")) == {"same but for spaces": (1, (1,))}
    assert found(clean, preference("q", " ", "c")) == {"empty answer": (1, (1,))}
    assert found(clean, clean) == {"duplicate": (1, (1,))}
    assert found(clean, preference("p", "b", "a")) == {"contradiction": (2, (0, 1))}
    assert found(clean, preference("q", "c", "d", -1.0)) == {"negative margin": (1, (1,))}
    assert found(clean, preference("q", "c", "d"), held_out=(preference("q", "x", "y"),)) == {
        "held-out prompt": (1, (1,))
    }


def test_case_is_a_difference() -> None:
    assert found(preference("p", "Ab", "aB")) == {}


def test_the_same_answers_to_other_prompts_contradict_nothing() -> None:
    assert found(preference("p", "a", "b"), preference("q", "b", "a")) == {}


def test_a_cycle_of_three_is_found_and_a_chain_or_a_contradiction_is_none() -> None:
    assert has_cycle([("a", "b"), ("b", "c"), ("c", "a")])
    assert has_cycle([("z", "a"), ("a", "b"), ("b", "c"), ("c", "a"), ("c", "y")])
    assert not has_cycle([("a", "b"), ("b", "c"), ("a", "c")])
    assert not has_cycle([("a", "b"), ("b", "a")])
    rows = [preference("p", "a", "b"), preference("q", "b", "c"), preference("q", "c", "a"), preference("q", "a", "b")]
    assert found(*rows) == {"cycle": (1, (1,))}


def test_length_is_weighed() -> None:
    checked = check_preferences([preference("p", "aaa", "b"), preference("q", "a", "b"), preference("r", "a", "bb")])
    assert checked.chosen_longer == 1 / 3
    assert checked.ruler.value == 0.5 and checked.ruler.low < 0.5 < checked.ruler.high


def test_a_length_confound_is_a_flaw_only_where_it_is_sure() -> None:
    longer = [preference(f"{n}", "aaa", "b") for n in range(30)]
    assert found(*longer)["length confound"][0] == 1
    assert found(*(preference(f"{n}", "a", "bbb") for n in range(30)))["length confound"][0] == 1
    assert found(*longer[:3]) == {}
    assert found(*longer, *(preference(f"q{n}", "a", "bbb") for n in range(25))) == {}


def test_a_base_tells_what_its_context_cuts(tmp_path: Path) -> None:
    from llmcore.checkpoint import save_model
    from llmcore.model.config import ModelConfig

    model = ModelConfig(vocab_size=260, width=16, depth=1, context=64).build(seed=0)
    base = tmp_path / "base"
    base.mkdir()
    save_model(base, model, Tokenizer.byte_level())
    long = "e" * 99
    rows = [("short", "a", "b"), ("long", "c" * 99, "d"), ("q", long + "1", long + "2"), ("q", "y", long + "2")]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(dict(zip(KEYS, row, strict=True))) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "valid.jsonl").write_text('{"prompt": "v", "chosen": "a", "rejected": "b"}\n', encoding="utf-8")
    findings = {finding.name: finding.times for finding in check_path(tmp_path, base=base).findings}
    assert findings == {"too long": 3, "same once cut": 1}
    assert check_path(tmp_path).findings == ()


def test_a_file_is_checked_with_the_rows_its_reader_left_out(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{n}", "chosen": "a", "rejected": "b"} for n in range(9)]
    rows.append({"prompt": "p9", "chosen": "same", "rejected": "same"})
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    checked = check_path(path)
    assert checked.flaws == 1 and checked.findings[0].times == 1
    assert any("left out" in line for line in lines(checked))
    assert json.loads(json.dumps(as_json(checked)))["flaws"] == 1
