"""Python that the packages' READMEs show runs as it stands."""

import re
import subprocess
import sys
from pathlib import Path

from conftest import Line

PACKAGES = Path(__file__).resolve().parent.parent / "packages"


def test_the_attention_of_a_checkpoint_can_be_printed(line: Line, tmp_path: Path) -> None:
    (shown,) = re.findall(r"```python\n(.*?)```", (PACKAGES / "llmcore" / "README.md").read_text(), re.DOTALL)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "pretrain-tiny").symlink_to(line.base, target_is_directory=True)
    checked = (
        shown + "assert weights[0].shape == (1, 2, 14, 14) and torch.allclose(weights[0].sum(-1), torch.ones(()))\n"
    )
    done = subprocess.run([sys.executable, "-c", checked], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("tensor([[1.0000, 0.0000")
