"""What the site does beside rendering pages: reference, notebooks, pages from elsewhere, formulas.

Pages are written to be read in the repository, too: their links lead to files there. Here a link
to a source file leads to that module's page of the reference, and $$ … $$ becomes MathML, which
browsers show without a script.
"""

from __future__ import annotations

import ast
import base64
import json
import posixpath
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "variational_diffusion"
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))

ELSEWHERE = {
    "CONTRIBUTING.md": "project/contributing.md",
    "RELEASING.md": "project/releasing.md",
    "SECURITY.md": "project/security.md",
    "CHANGELOG.md": "project/changelog.md",
    "experiments/LOG.md": "project/log.md",
    "experiments/speedrun.md": "project/speedrun.md",
}
"""Pages outside of docs/, and where the site has them."""

_FENCE = re.compile(r"(^```.*?^```[^\n]*$)", re.DOTALL | re.MULTILINE)
_FORMULA = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
_INLINE = re.compile(r"(?<![\\$`\w])\$([^$\n`]+?)\$(?![\w$])")
_LINK = re.compile(r"\[([^\]\[]*)\]\(([^)#\s]+)([^)]*)\)")


@cache
def modules() -> list[str]:
    """Return the modules of the reference, such as "likelihood.summary", without the commands."""
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        if parts[0] == "cli" or parts == ("__init__",):
            continue
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found.append(name)
    return sorted(found)


def summary(name: str) -> str:
    """Return the first sentence of a module's docstring."""
    found = re.match(r'"""(.+?)(?:\n\n|""")', _path(name).read_text(encoding="utf-8"), re.DOTALL)
    return " ".join(found[1].split()) if found else ""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the reference and the pages from elsewhere."""
    for name in modules():
        text = f"# {name}\n\n::: variational_diffusion.{name}\n"
        files.append(_page(config, f"reference/{name}.md", text))
    files.append(_page(config, "reference/index.md", _overview()))
    for path in NOTEBOOKS:
        for file in notebook_files(config, path):
            files.append(file)
    for source, target in ELSEWHERE.items():
        files.append(_page(config, target, (ROOT / source).read_text(encoding="utf-8")))
    return files


def notebook_files(config: MkDocsConfig, path: Path) -> Iterator[File]:
    """Yield the page of a notebook, with what its cells printed, and the pictures it shows."""
    blocks: list[str] = []
    count = 0
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            blocks.append(source)
            continue
        blocks.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                count += 1
                name = f"notebooks/{path.stem}-{count}.png"
                picture = base64.b64decode("".join(data["image/png"]))
                yield File.generated(config, name, content=picture)
                blocks.append(f"![What the cell above shows]({path.stem}-{count}.png)")
            else:
                text = "".join(output.get("text") or data["text/plain"]).rstrip()
                blocks.append(f'```text title="printed"\n{text}\n```')
    blocks.insert(1, f"[This page as a notebook]({path.name})")
    yield _page(config, f"notebooks/{path.stem}.md", "\n\n".join(blocks) + "\n")


def _overview() -> str:
    """Return the first page of the reference: the public names, and then the modules by room."""
    rows = ["# Reference", "", "After `import variational_diffusion as vd`, these are names of it:"]
    rows += ["", "| name | what it is |", "| --- | --- |"]
    for name, where, about in sorted(public_names(), key=lambda row: row[0].swapcase()):
        rows.append(f"| [`vd.{name}`]({where}.md#variational_diffusion.{where}.{name}) | {about} |")
    rooms: dict[str, list[str]] = {}
    for name in modules():
        room = name.partition(".")[0]
        rooms.setdefault(room if (SOURCE / room).is_dir() else "", []).append(name)
    for room, names in sorted(rooms.items()):
        rows += ["", f"## {room or 'Modules'}", "", summary(room) if room else "", ""]
        rows += ["| module | what it holds |", "| --- | --- |"]
        for name in names:
            rows.append(f"| [`{name}`]({name}.md) | {_cell(summary(name))} |")
    return "\n".join(rows) + "\n"


def public_names() -> list[tuple[str, str, str]]:
    """Return the public names, the modules that define them, and their first sentences."""
    found = []
    for name, home in _homes().items():
        for where in (home, *(m for m in modules() if m.startswith(f"{home}."))):
            tree = ast.parse(_path(where).read_text(encoding="utf-8"))
            for node in tree.body:
                if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
                    about = (ast.get_docstring(node) or "").partition("\n\n")[0]
                    found.append((name, where, _cell(" ".join(about.split()))))
    return found


def _homes() -> dict[str, str]:
    tree = ast.parse((SOURCE / "__init__.py").read_text(encoding="utf-8"))
    (homes,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_HOMES"
    )
    names: dict[str, str] = ast.literal_eval(homes)
    return names


def _path(name: str) -> Path:
    path = SOURCE / name.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _page(config: MkDocsConfig, uri: str, text: str) -> File:
    """Return a page that is no file of docs/, and need not be in the navigation."""
    return File.generated(config, uri, content=text, inclusion=InclusionLevel.NOT_IN_NAV)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links and formulas into what a site has, outside of code."""
    origin = {target: source for source, target in ELSEWHERE.items()}
    here = origin.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    parts = _FENCE.split(markdown)
    for i in range(0, len(parts), 2):
        text = _LINK.sub(lambda m: _link(m, here, page), parts[i])
        if page.file.src_uri == "theory.md" or page.file.src_uri.startswith("notebooks/"):
            text = _FORMULA.sub(
                lambda m: f"<div class='formula'>{_mathml(m[1], 'block')}</div>", text
            )
            text = _INLINE.sub(lambda m: _mathml(m[1], "inline"), text)
        parts[i] = text
    return "".join(parts)


def _link(match: re.Match[str], here: str, page: Page) -> str:
    """Return a link of a file in the repository as one of the site.

    What is in the repository and not on the site is named without a link; what is nowhere stays,
    for the build to find.
    """
    words, link, rest = match.groups()
    if "://" in link or link.startswith("mailto:"):
        return match[0]
    path = posixpath.normpath(posixpath.join(posixpath.dirname(here), link))
    name = path.removeprefix("src/variational_diffusion/").removesuffix(".py")
    name = name.removesuffix("/__init__").replace("/", ".")
    if path == "src/variational_diffusion/__init__.py":  # the public names
        target = "reference/index.md"
    elif path.startswith("src/") and name in modules():
        target = f"reference/{name}.md"
    elif path.startswith("docs/"):
        target = path.removeprefix("docs/")
    elif path in ELSEWHERE:
        target = ELSEWHERE[path]
    elif path in ("README.md", "."):
        target = "index.md"
    else:
        return words if (ROOT / path).exists() else match[0]
    target = posixpath.relpath(target, posixpath.dirname(page.file.src_uri) or ".")
    return f"[{words}]({target}{rest})"


def _mathml(formula: str, display: str) -> str:
    text: Any = convert(" ".join(formula.split()), display=display)
    return str(text)
