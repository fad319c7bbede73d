"""Rules in prose, kept by tests: who may import whom, and what may not be imported at all."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = sorted(p.name for p in (ROOT / "packages").iterdir() if p.is_dir())
SOURCES = sorted((ROOT / "packages").glob("*/src/**/*.py"))
TORCHLESS = ["errors", "config", "extensions", "storage", "manifest", "records", "tokenizer",
             "tokenizer_document", "chat", "shards", "literals", "command", "cli", "options", "builtin",
             "settings_commands", "next_command", "train/plan_command", "train/memory"]  # fmt: skip


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Full dotted names of the modules a file imports."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found.add(node.module or "")
    return found


def test_there_are_seven_packages() -> None:
    assert PACKAGES == ["llmcore", "llmdata", "llmmoe", "llmpretrain", "llmreward", "llmrl", "llmsft"]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_stage_imports_llmcore_and_itself(package: str) -> None:
    allowed = {package, "llmcore"}
    for path in (ROOT / "packages" / package / "src").rglob("*.py"):
        ours = {name.partition(".")[0] for name in imports(path)} & set(PACKAGES)
        assert ours <= allowed, f"{path.relative_to(ROOT)} imports {ours - allowed}"


@pytest.mark.parametrize("package", PACKAGES)
def test_a_stage_declares_llmcore_alone(package: str) -> None:
    project = tomllib.loads((ROOT / "packages" / package / "pyproject.toml").read_text())["project"]
    ours = {d.split(">")[0].split("[")[0] for d in project["dependencies"]} & set(PACKAGES)
    assert ours == (set() if package == "llmcore" else {"llmcore"})


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT / "packages")))
def test_no_pickle_no_eval_no_foreign_trainers(path: Path) -> None:
    banned = {"pickle", "yaml", "transformers", "datasets", "accelerate", "lightning", "jinja2", "click"}
    assert not {name.partition(".")[0] for name in imports(path)} & banned
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    names = {call.id for call in calls if isinstance(call, ast.Name)}
    if path.name != "jail.py":  # to run a program, in a process without rights, is what that one is for
        assert not names & {"eval", "exec", "compile", "__import__"}
    attributes = {ast.unparse(call) for call in calls if isinstance(call, ast.Attribute)}
    assert not attributes & {"torch.load", "torch.save"}


WAITING = {"time.perf_counter", "time.monotonic", "time.sleep"}
CLOCKS = {"now", "utcnow", "today", "gmtime", "localtime", "strftime", "ctime", "asctime", "uuid1"}


def test_time_orders_names_seeds_and_keeps_nothing() -> None:
    """Durations are taken and waited for; the date is asked for by manifests, to be read, and for one axis."""
    found = {}
    for path in SOURCES:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        assert not [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module == "time"], path
        asked = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)} - WAITING
        if clocks := {name for name in asked if name.startswith("time.") or asks_for_the_date(name)}:
            found[path.relative_to(ROOT / "packages").as_posix()] = clocks
    assert found == {
        "llmcore/src/llmcore/manifest.py": {"datetime.now"},
        "llmcore/src/llmcore/train/tensorboard.py": {"time.time"},
    }


def asks_for_the_date(name: str) -> bool:
    """Whether an attribute is the date, or a file's."""
    last = name.rpartition(".")[2]
    return last in CLOCKS or last.startswith(("st_mtime", "st_ctime", "st_atime", "getmtime", "getctime"))


def test_modules_that_answer_help_do_not_import_torch() -> None:
    heavy = {"torch", "safetensors.torch", "tensorboard", "transformers"}
    files = [ROOT / "packages/llmcore/src/llmcore" / f"{name}.py" for name in TORCHLESS]
    files += [path for path in SOURCES if path.name == "cli.py" or "/llmdata/" in str(path)]
    for path in files:
        assert not imports(path, top_level_only=True) & heavy, path


def test_the_map_of_llmcore_names_every_module() -> None:
    package = ROOT / "packages/llmcore/src/llmcore"
    words = set(re.findall(r"\w+", ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""))
    there = {path.stem for path in package.iterdir() if not path.name.startswith("__") and path.suffix in ("", ".py")}
    assert there <= words, there - words


def test_broad_excepts_stand_at_three_places_only() -> None:
    """The command's main, the call of a user's reward, and `tokenizers`, whose errors have no class of their own."""
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler) and (node.type is None or ast.unparse(node.type) == "Exception"):
                found.append(path.relative_to(ROOT / "packages").as_posix())
    assert sorted(found) == [
        "llmcore/src/llmcore/command.py",
        "llmcore/src/llmcore/tokenizer_document.py",
        "llmrl/src/llmrl/rewards/calling.py",
    ]


def test_no_file_holds_an_index_address_or_a_lock() -> None:
    tracked = [p for p in ROOT.rglob("*") if p.is_file() and not {".git", ".venv", "runs"} & set(p.parts)]
    for path in tracked:
        if path.suffix in {".toml", ".md", ".py", ".lock", ".cfg"} and path.name != "uv.lock":
            text = path.read_text(errors="replace")
            assert "/simple/" not in text.replace('"/simple/"', "") and ".whl#" not in text.replace('".whl#"', ""), path


def test_every_package_ships_types_a_readme_and_a_docstring() -> None:
    for package in PACKAGES:
        folder = ROOT / "packages" / package
        assert (folder / "src" / package / "py.typed").exists() and (folder / "README.md").stat().st_size > 100
        assert ast.get_docstring(ast.parse((folder / "src" / package / "__init__.py").read_text()))
