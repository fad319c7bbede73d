import json
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from llmreward.cli import app


def test_help_and_check_do_not_import_torch() -> None:
    code = (
        "import sys, llmreward.cli, llmreward.check; from typer.testing import CliRunner;"
        "result = CliRunner().invoke(llmreward.cli.app, ['run', '--help']); assert result.exit_code == 0, result;"
        "assert '--base' in result.output; sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_check_prints_findings_and_fails_only_if_asked(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{n}", "chosen": "a", "rejected": "b"} for n in range(30)] * 2
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    plain = CliRunner().invoke(app, ["check", str(path)])
    assert plain.exit_code == 0 and "duplicate" in plain.output
    machine = CliRunner().invoke(app, ["check", str(path), "--json"])
    assert json.loads(machine.output)["findings"][0]["name"] == "duplicate"
    assert CliRunner().invoke(app, ["check", str(path), "--strict"]).exit_code != 0


def test_score_wants_either_a_file_or_a_prompt_with_answers(tmp_path: Path) -> None:
    for arguments in (["score", "x"], ["score", "x", "--data", "a", "--prompt", "b"], ["score", "x", "--prompt", "b"]):
        assert CliRunner().invoke(app, arguments).exit_code != 0
