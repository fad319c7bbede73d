import json
import shlex
from pathlib import Path

import pytest

from llmcore.errors import ArtifactError, ExtensionError
from llmcore.manifest import (
    Manifest,
    check_needs,
    command_line,
    describe_file,
    family,
    harmless,
    read_manifest,
    verify_artifact,
    write_manifest,
)


def artifact(folder: Path, text: str = "data", **more: object) -> Manifest:
    folder.mkdir(exist_ok=True)
    (folder / "a.txt").write_text(text)
    settings = {"kind": "tokens", "made_by": "test", "config": {"seed": 1}, **more}
    return write_manifest(folder, files=["a.txt"], **settings)  # type: ignore[arg-type]


def test_written_manifest_is_read_back(tmp_path: Path) -> None:
    written = artifact(tmp_path, metrics={"loss": 1.5}, counts={"rows": 3})
    assert verify_artifact(tmp_path, expect="tokens") == written


def test_id_names_the_history_and_not_the_time(tmp_path: Path) -> None:
    first, again = artifact(tmp_path / "a"), artifact(tmp_path / "b", metrics={"loss": 2.0})
    assert first.id == again.model_copy(update={"made_at": "later", "command": "other"}).id
    other_file = artifact(tmp_path / "c", "other")
    other_config = artifact(tmp_path / "d", config={"seed": 2})
    other_parent = artifact(tmp_path / "e", parents={"base": other_file})
    assert len({m.id for m in (first, other_file, other_config, other_parent)}) == 4


def test_parents_are_carried_whole(tmp_path: Path) -> None:
    grandparent = artifact(tmp_path / "a")
    parent = artifact(tmp_path / "b", parents={"data": grandparent})
    artifact(tmp_path / "c", parents={"base": parent})
    rows = [(depth, role, m.id) for depth, role, m in family(read_manifest(tmp_path / "c"))]
    assert rows[1:] == [(1, "base", parent.id), (2, "data", grandparent.id)]


def test_inputs_are_not_part_of_the_config(tmp_path: Path) -> None:
    assert artifact(tmp_path, config={"inputs": {"data": "/some/where"}, "seed": 1}).config == {"seed": 1}


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda d: (d / "a.txt").write_text("dat"), "truncated or changed"),
        (lambda d: (d / "a.txt").write_text("dxta"), "SHA-256"),
        (lambda d: (d / "a.txt").unlink(), "lacks a.txt"),
        (lambda d: (d / "manifest.json").unlink(), "no finished artifact"),
        (lambda d: (d / "manifest.json").write_text("{"), "not valid JSON"),
        (lambda d: (d / "manifest.json").write_text("[" * 100_000), "manifest.json"),
        (lambda d: edit(d, schema_version=99), "schema version 99"),
        (lambda d: edit(d, surprise=1), "surprise"),
        (lambda d: edit(d, files={"../a.txt": {"bytes": 1, "sha256": "0" * 64}}), "outside the artifact"),
        (lambda d: edit(d, files={"/etc/passwd": {"bytes": 1, "sha256": "0" * 64}}), "outside the artifact"),
    ],
)
def test_damage_is_refused_and_named(tmp_path: Path, damage: object, sentence: str) -> None:
    artifact(tmp_path)
    damage(tmp_path)  # type: ignore[operator]
    with pytest.raises(ArtifactError, match=sentence):
        verify_artifact(tmp_path)


def edit(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    kept = {name: value for name, value in json.loads(path.read_text()).items() if name != "checksum"}
    path.write_text(json.dumps(kept | changes))


def test_a_changed_value_is_found_by_the_manifests_own_checksum(tmp_path: Path) -> None:
    artifact(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('"made_by": "test"', '"made_by": "tesT"'))
    with pytest.raises(ArtifactError, match=r"manifest\.json is damaged"):
        read_manifest(tmp_path)


def test_a_figure_that_is_no_number_is_left_out_of_the_manifest(tmp_path: Path) -> None:
    manifest = write_manifest(
        tmp_path, kind="policy", made_by="test", config={}, files=[], metrics={"loss": 1.0, "kl": float("nan")}
    )
    assert manifest.metrics == {"loss": 1.0}
    assert read_manifest(tmp_path) == manifest


def test_links_out_of_the_artifact_are_refused(tmp_path: Path) -> None:
    artifact(tmp_path / "a")
    outside = tmp_path / "outside"
    outside.write_text("data")
    (tmp_path / "a" / "a.txt").unlink()
    (tmp_path / "a" / "a.txt").symlink_to(outside)
    with pytest.raises(ArtifactError, match="link out of"):
        read_manifest(tmp_path / "a")


def test_another_kind_is_refused_with_both_names(tmp_path: Path) -> None:
    artifact(tmp_path)
    with pytest.raises(ArtifactError, match=r"holds tokens \(made by test\), a policy is needed"):
        read_manifest(tmp_path, expect="policy")


def test_a_needed_package_that_is_missing_is_named(tmp_path: Path) -> None:
    manifest = artifact(tmp_path, needs={"llmnothing": "0.1.0"})
    with pytest.raises(ExtensionError, match=r"needs llmnothing 0\.1\.0, which is not installed"):
        check_needs(manifest, tmp_path)


def test_an_outside_file_is_a_parent(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("{}\n")
    described = describe_file(path)
    path.write_text("{} \n")
    assert described.kind == "file" and describe_file(path).id != described.id


def test_commands_hold_no_absolute_path_and_no_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert harmless(str(tmp_path / "runs" / "a")) == "runs/a"
    assert harmless("--out=/elsewhere/b") == "--out=b"
    assert harmless("literal + 0.5*/elsewhere/b + 1/3") == "literal + 0.5*b + 1/3"
    assert harmless("HF_TOKEN=abc") == "HF_TOKEN=…"
    words = ["llmcore", "push", "--token", "abc", "--api-key", "def", "--tokens", "5", "--password=ghi"]
    monkeypatch.setattr("sys.argv", words)
    hidden = ["llmcore", "push", "--token", "…", "--api-key", "…", "--tokens", "5", "--password=…"]
    assert shlex.split(command_line()) == hidden
