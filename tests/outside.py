"""A package of somebody else's, really installed: a module and its metadata in a folder on a child's path."""

from collections.abc import Mapping
from pathlib import Path


def install(site: Path, name: str, code: str, entry_points: Mapping[str, str], *, version: str = "1.0") -> Path:
    """Install a one-module package into the folder `site`, as pip lays it out; give `site` to `forked.run`.

    `install(folder, "scale-norm", code, {"llmcore.norm": "scale = scale_norm:ScaleNorm"})`: the module is named like
    the package, with underscores.
    """
    module = name.replace("-", "_")
    metadata = site / f"{module}-{version}.dist-info"
    metadata.mkdir(parents=True)
    (site / f"{module}.py").write_text(code)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    offers = (f"[{group}]\n{line}\n" for group, line in entry_points.items())
    (metadata / "entry_points.txt").write_text("\n".join(offers))
    inside = (f"{metadata.name}/{file}" for file in ("METADATA", "entry_points.txt", "RECORD"))
    (metadata / "RECORD").write_text("".join(f"{file},,\n" for file in (f"{module}.py", *inside)))
    return site
