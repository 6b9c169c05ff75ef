"""The Python files that users get, and the names they are imported by."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parent.parent


def import_name(source: Path) -> str:
    """`passes/rewrites/narrow.py` -> `anytimeify.passes.rewrites.narrow`; a package goes by the name of its folder."""
    parts = list(source.relative_to(ROOT).with_suffix("").parts)
    if parts[0] == "passes":
        parts.insert(0, "anytimeify")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources() -> list[Path]:
    """Every file of the package. The link anytimeify/passes is left out: its files are found in passes/ itself."""
    link = ROOT / "anytimeify" / "passes"
    inside = [path for path in (ROOT / "anytimeify").rglob("*.py") if link not in path.parents]
    return sorted([*inside, *(ROOT / "passes").rglob("*.py")])
