"""What the site has beside the pages of docs/: the README, the changelog, the reference, examples, a gallery.

mkdocs calls the functions whose names begin with `on_`. Nothing of the package is imported, so torch is not needed.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

__all__ = ["on_config", "on_files", "on_page_markdown"]

ROOT = Path(__file__).parent.parent

REFERENCE = {
    "anytimeify": "All that most programs need.",
    "anytimeify.runtime": "Running levels: by deadline, by load.",
    "anytimeify.serving.policy": "The policy of the queue, for other servers.",
    "anytimeify.losses": "Objectives of levels.",
    "anytimeify.train": "Steps of training.",
    "anytimeify.staged": "Networks that run exit by exit.",
    "anytimeify.thresholds": "When samples leave.",
    "anytimeify.masks": "Masks of weights, by name.",
    "anytimeify.compressed": "Weights that take little memory.",
    "anytimeify.diagnostics": "What levels learn.",
    "anytimeify.verification": "A model against its backbone.",
    "anytimeify.papers": "The networks of papers.",
    "anytimeify.testing": "For tests of your own schemes and rules.",
}
"""Modules whose `__all__` is documented; those that are not there are left out."""

CAPTIONS = {
    "digits": "Accuracy against cost of four widths, trained together and alone (`make demo`)",
    "increments": "What levels add: [levels](diagnostics_levels.md)",
    "kernels": "Kernels of two branches: [do they learn the same?](diagnostics.md)",
    "norms": "Where the weights are: [levels](diagnostics_levels.md)",
    "server": "Levels that answer while the load rises tenfold: [a server](server.md)",
    "serving": "Shares of requests that are answered in time: [serving](serving.md)",
    "report": "The report of a model",
    "site": "This site",
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Completes the table of contents: what mkdocs.yml does not name is a measurement."""
    assert config.nav is not None
    named = {*re.findall(r"[\w/]+\.md", str(config.nav)), "index.md"}
    measured = [path.name for path in sorted((ROOT / "docs").glob("*.md")) if path.name not in named]
    decisions = [f"decisions/{path.name}" for path in sorted((ROOT / "docs/decisions").glob("*.md"))]
    config.nav += [
        {"Reference": [f"reference/{module}.md" for module in _modules()]},
        {"Measurements": measured},
        {"Decisions": ["decisions/index.md", *decisions]},
        {"Changelog": "changelog.md"},
    ]
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the pages that are made."""
    made = {
        "index.md": (ROOT / "README.md").read_text(),
        "contributing.md": (ROOT / "CONTRIBUTING.md").read_text(),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(),
        "examples.md": _examples(),
        "gallery.md": _gallery(),
        "decisions/index.md": _decisions(),
        **{f"reference/{module}.md": _module(module, about) for module, about in _modules().items()},
    }
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Links of the repository become those of the site."""
    made = page.file.src_uri in ("index.md", "contributing.md", "changelog.md")
    text = markdown.replace("](docs/", "](") if made else markdown
    text = re.sub(r"\]\((\.\./)?CONTRIBUTING\.md", r"](contributing.md", text)
    text = text.replace("](decisions/)", "](decisions/index.md)")
    return re.sub(r"\]\((\.\./)+examples/[\w./]*\)", "](examples.md)", text)


def _modules() -> dict[str, str]:
    return {module: about for module, about in REFERENCE.items() if _source(module) is not None}


def _source(module: str) -> Path | None:
    path = ROOT / module.replace(".", "/")
    return next((one for one in (path / "__init__.py", path.with_suffix(".py")) if one.exists()), None)


def _module(module: str, about: str) -> str:
    """The public names of a module, one after the other."""
    source = _source(module)
    assert source is not None
    (names,) = (
        ast.literal_eval(node.value)
        for node in ast.parse(source.read_text()).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    blocks = [f"::: {module}.{name}" for name in names if not name.startswith("_")]
    return "\n\n".join([f"# `{module}`", about, *blocks]) + "\n"


def _title(path: Path) -> str:
    return path.read_text().partition("\n")[0].removeprefix("# ")


def _decisions() -> str:
    lines = [f"- [{_title(path)}]({path.name})" for path in sorted((ROOT / "docs/decisions").glob("*.md"))]
    return "\n".join(
        ["# Design decisions", "", "Problem, choice and cost, in the order in which they were taken.", "", *lines]
    )


def _examples() -> str:
    """What every script says of itself, where its results are, and its text."""
    parts = ["# Examples", "Scripts that run as they are, from the repository. What the README shows is run by a test."]
    for path in sorted([*(ROOT / "examples").glob("*.py"), *(ROOT / "examples").glob("*/__main__.py")]):
        text = path.read_text()
        about = ast.get_docstring(ast.parse(text)) or ""
        title, _, rest = about.partition("\n")
        name = path.relative_to(ROOT).as_posix()
        parts += [f"## {title.removesuffix('.')}", rest.strip("\n")]
        page = {"__main__": "server"}.get(path.stem) or next(iter(re.findall(r"docs/(\w+)\.md", about)), path.stem)
        if (ROOT / "docs" / f"{page}.md").exists():
            parts.append(f"[What came out]({page}.md)")
        code = "\n".join(f"    {line}" for line in text.splitlines())
        parts.append(f'??? note "{name}"\n\n    ```python\n{code}\n    ```')
    return "\n\n".join(parts) + "\n"


def _gallery() -> str:
    parts = ["# Gallery"]
    for path in sorted((ROOT / "docs/images").glob("*.png")):
        caption = CAPTIONS.get(path.stem, path.stem.replace("_", " "))
        parts += [f"![{path.stem}](images/{path.name})", caption]
    return "\n\n".join(parts) + "\n"
