"""Write docs/tree.md: every module with the first sentence of its docstring.

uv run tools/tree.py            write it
uv run tools/tree.py --check    say whether it is up to date
"""

import argparse
import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from llmcore.storage import write_durably

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "tree.md"
PACKAGES = ("llmcore", "llmdata", "llmpretrain", "llmmoe", "llmsft", "llmreward", "llmrl")
HEADING = """\
# The tree

Every module, by the first sentence of its docstring (`tools/tree.py` writes this page). Every stage uses the same file
names where it needs them: `cli`, `config`, `batches`, `loss`, `run`, `evaluate`. Know one, know all.
"""


def main() -> None:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="exit 1 if the page is not up to date")
    if parser.parse_args().check:
        sys.exit(0 if PAGE.read_text(encoding="utf-8") == page() else f"{PAGE.relative_to(ROOT)}: run tools/tree.py")
    write_durably(PAGE, page().encode())


def page() -> str:
    """The whole page, in Markdown."""
    parts = [HEADING]
    for package in PACKAGES:
        source = ROOT / "packages" / package / "src" / package
        for folder in (source, *sorted(path for path in source.rglob("*") if path.is_dir())):
            parts += table(folder, folder.relative_to(source.parent).as_posix())
    parts += table(ROOT / "tools", "tools")
    return "\n".join(parts)


def table(folder: Path, title: str) -> Iterator[str]:
    """The modules of one folder; nothing for a folder without any."""
    modules = sorted(path for path in folder.glob("*.py") if not path.name.startswith("__"))
    if modules:
        yield f"## {title}\n\n| module | |\n|---|---|"
        yield "".join(f"| [{path.stem}]({link(path)}) | {sentence(path)} |\n" for path in modules)


def link(path: Path) -> str:
    """A file as seen from the page."""
    return f"../{path.relative_to(ROOT).as_posix()}"


def sentence(path: Path) -> str:
    """The first paragraph's first sentence of a module's docstring, on one line."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    first = " ".join(text.partition("\n\n")[0].split())
    return first.partition(". ")[0].rstrip(".").replace("|", "\\|")


if __name__ == "__main__":
    main()
