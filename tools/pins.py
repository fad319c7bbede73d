"""Pin every resolved version without naming an index: `[tool.uv] constraint-dependencies` and `requirements.lock`.

    uv run tools/pins.py            write both from a fresh resolution
    uv run tools/pins.py --check    exit 1 if a locked version is not pinned

`uv.lock` holds an index address in every line, so it stays out of git; the pins reproduce it.
"""

import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = ROOT / "pyproject.toml"
BLOCK = re.compile(r"^constraint-dependencies = \[.*?\n\]\n", re.DOTALL | re.MULTILINE)


def pins() -> list[str]:
    """`name==version` for every package of uv.lock that comes from an index, with markers where versions differ."""
    lock = tomllib.loads((ROOT / "uv.lock").read_text())
    found: dict[str, list[tuple[str, list[str]]]] = defaultdict(list)
    for package in lock["package"]:
        if "registry" in package["source"]:
            release = package["version"].partition("+")[0]
            found[package["name"]].append((release, package.get("resolution-markers", [])))
    rows = []
    for name, versions in sorted(found.items()):
        if len({release for release, _ in versions}) == 1:
            rows.append(f"{name}=={versions[0][0]}")
        else:
            rows += [f"{name}=={release} ; {' or '.join(f'({m})' for m in ms)}" for release, ms in versions if ms]
    return rows


def with_pins(text: str, rows: list[str]) -> str:
    """pyproject.toml with its constraint block replaced."""
    block = "constraint-dependencies = [\n" + "".join(f'    "{row}",\n' for row in rows) + "]\n"
    if BLOCK.search(text):
        return BLOCK.sub(lambda _: block, text, count=1)
    return text.replace("[tool.uv]\n", f"[tool.uv]\n{block}", 1)


def export() -> str:
    """Names, versions and hashes of the whole closure, no addresses."""
    command = ["uv", "export", "--quiet", "--no-emit-workspace", "--all-packages", "--no-header", "--no-annotate"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return "".join(line for line in done.stdout.splitlines(keepends=True) if not line.startswith("--index"))


def main() -> None:
    """Write the pins, or check them."""
    if not (ROOT / "uv.lock").exists():
        subprocess.run(["uv", "lock"], cwd=ROOT, check=True)
    rows = pins()
    text = PYPROJECT.read_text()
    if "--check" in sys.argv:
        pinned = set(re.findall(r'^    "([^ "]+)', (BLOCK.search(text) or [""])[0], re.MULTILINE))
        loose = sorted({row.partition(" ")[0] for row in rows} - pinned)
        for row in loose:
            print(f"resolved but not pinned: {row}")
        print(f"{len(rows)} resolved, {len(loose)} not pinned")
        sys.exit(bool(loose))
    PYPROJECT.write_text(with_pins(text, rows))
    (ROOT / "requirements.lock").write_text(export())
    print(f"{len(rows)} pins")


if __name__ == "__main__":
    main()
