"""llmcore from a built wheel, in a fresh project outside: the README's lines load, generate and train."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import Line

ROOT = Path(__file__).resolve().parent.parent


def readme_python() -> list[str]:
    """The Python blocks of the README's section on llmcore alone."""
    section = (ROOT / "README.md").read_text().split("## llmcore alone")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


@pytest.mark.skipif(shutil.which("uv") is None, reason="needs uv to build the wheel")
def test_the_readmes_lines_run_from_a_wheel_outside(line: Line, tmp_path: Path) -> None:
    build = ["uv", "build", "--quiet", "--wheel", "--package", "llmcore", "--out-dir", tmp_path / "dist"]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    [wheel] = (tmp_path / "dist").glob("*.whl")
    install = ["uv", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path / "site", wheel]
    subprocess.run(install, cwd=tmp_path, check=True, capture_output=True)
    shutil.copytree(line.sft, tmp_path / "runs" / "quickstart" / "grpo", ignore=shutil.ignore_patterns("run"))
    check = "import llmcore; assert 'site' in llmcore.__file__, llmcore.__file__"
    for block in readme_python():
        done = subprocess.run(
            [sys.executable, "-c", f"{check}\n{block}"],
            cwd=tmp_path,
            env={"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "mine" / "manifest.json").exists() or (tmp_path / "runs" / "mine" / "run").exists()
