"""What the commands `generate` and `chat` do, with a real policy on disk."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmcore.chat import render_chat
from llmcore.checkpoint import Checkpoint, save_model
from llmcore.errors import ArtifactError, DataError
from llmcore.generate.chat import fit_context, load_policy, run_chat, run_generate, text_prompt
from llmcore.generate.engine import generate
from llmcore.generate.sampling import Sampling
from llmcore.manifest import write_manifest
from llmcore.model.config import ModelConfig
from llmcore.records import Message
from llmcore.tokenizer import Tokenizer

BYTES = Tokenizer.byte_level()
CONTEXT = 128


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("policy")
    heads = {"heads": 2, "kv_heads": 1}
    shape = {"vocab_size": BYTES.vocab_size, "width": 16, "depth": 1, "context": CONTEXT, "attention": heads}
    config = ModelConfig.model_validate(shape)
    files = save_model(folder, config.build(seed=0), BYTES)
    write_manifest(folder, kind="policy", made_by="llmpretrain", config=config, files=files)
    return load_policy(folder, device="cpu")


def test_generate_writes_the_prompt_and_its_continuation(policy: Checkpoint, capfd: pytest.CaptureFixture[str]) -> None:
    run_generate(policy, "héllo", Sampling(max_new_tokens=30, temperature=0))
    streamed = capfd.readouterr().out
    assert streamed.startswith("héllo") and streamed.endswith("\n") and len(streamed) > 8
    run_generate(policy, "héllo", Sampling(max_new_tokens=30, temperature=0), num_samples=2)
    assert capfd.readouterr().out == "".join(f"── {number} ──\n{streamed}" for number in (1, 2))


def test_a_text_cut_by_the_context_says_so(policy: Checkpoint, capfd: pytest.CaptureFixture[str]) -> None:
    run_generate(policy, "a" * 100, Sampling(max_new_tokens=1000, temperature=0))
    assert "context of 128 tokens ends" in capfd.readouterr().err
    run_generate(policy, "a" * 100, Sampling(max_new_tokens=5, temperature=0))
    assert capfd.readouterr().err == ""


def test_generate_for_machines_is_one_json_document(policy: Checkpoint, capfd: pytest.CaptureFixture[str]) -> None:
    run_generate(policy, "ab", Sampling(max_new_tokens=12), num_samples=3, json=True)
    document = json.loads(capfd.readouterr().out)
    assert (document["prompt"], document["prompt_tokens"]) == ("ab", 3)
    assert [one["stopped"] or one["tokens"] == 12 for one in document["completions"]] == [True] * 3
    assert all(one["logprob"] < 0 for one in document["completions"])


def test_an_empty_prompt_begins_a_document() -> None:
    assert text_prompt("", BYTES) == [BYTES.bos_id]
    assert text_prompt("a", BYTES) == [BYTES.bos_id, 97]


def test_a_folder_that_is_no_policy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        load_policy(tmp_path)


def turns(*contents: str, system: str = "") -> list[Message]:
    roles = ("user", "assistant")
    start = [Message(role="system", content=system)] if system else []
    return start + [Message(role=roles[i % 2], content=text) for i, text in enumerate(contents)]


def test_a_conversation_that_fits_is_left_as_it_is() -> None:
    messages = turns("hi", "hello", "how?", system="be kind")
    fitted = fit_context(messages, BYTES, context=200, answer_tokens=32)
    assert (fitted.messages, fitted.dropped) == (messages, 0)
    assert fitted.ids == render_chat(messages, BYTES, generation_prompt=True).ids


def test_the_oldest_turns_are_dropped_after_the_system_message() -> None:
    messages = turns("first " * 4, "answer " * 4, "second", "answer", "third", system="be kind")
    fitted = fit_context(messages, BYTES, context=140, answer_tokens=32)
    assert fitted.messages == [messages[0], *messages[3:]]
    assert fitted.dropped == 2
    assert len(fitted.ids) <= 140 - 32
    shorter = fit_context(messages, BYTES, context=100, answer_tokens=10_000)
    assert shorter.messages == [messages[0], messages[5]] and len(shorter.ids) <= 50


def test_a_single_message_that_cannot_fit_is_refused_with_the_numbers() -> None:
    with pytest.raises(DataError, match=r"\d+ tokens.*only 32 of .* 64"):
        fit_context(turns("x" * 50), BYTES, context=64, answer_tokens=1000)


def lines(*said: str) -> Callable[[], str]:
    """What a person types, then the end of the input."""
    typed: Iterator[str] = iter(said)

    def read_line() -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    return read_line


def test_a_chat_survives_a_full_context_and_says_so(policy: Checkpoint, capfd: pytest.CaptureFixture[str]) -> None:
    said = ["hello there, model"] * 5
    run_chat(policy, Sampling(max_new_tokens=24), system="short", read_line=lines(*said))
    out = capfd.readouterr().out
    assert out.count("model ›") == 5
    assert "the context of 128 tokens is full: the oldest" in out


def test_a_message_that_is_too_long_is_told_and_the_chat_goes_on(
    policy: Checkpoint, capfd: pytest.CaptureFixture[str]
) -> None:
    run_chat(policy, Sampling(max_new_tokens=8), read_line=lines("x" * 500, "", "/new", "hi"))
    out = capfd.readouterr().out
    assert "error: the message has" in out and out.count("model ›") == 1


def test_an_answer_is_what_generate_gives(policy: Checkpoint, capfd: pytest.CaptureFixture[str]) -> None:
    run_chat(policy, Sampling(max_new_tokens=10, temperature=0), read_line=lines("hi"))
    ids = render_chat(turns("hi"), BYTES, generation_prompt=True).ids
    ((wanted,),) = generate(policy.model, [ids], Sampling(max_new_tokens=10, temperature=0), stop_ids=BYTES.stop_ids)
    visible = "".join(c for c in BYTES.decode(wanted.ids) if c.isprintable())
    assert f"model › {visible}" in capfd.readouterr().out
