"""What the documentation's build adds to the pages in this folder (see ``hooks`` in mkdocs.yml).

* Pages made from other files: README.md, CONTRIBUTING.md, CHANGELOG.md and the notebook.
* A page in which the package's model answers for its sample video, on the front page in place of
  the README's animation.
* A copy of the package in which ``ivcl_fast.kernels`` lies where its name says. The API reference
  is read from it, and no module of it is imported.
* Links to files of the repository that are no pages become plain text.
* Console blocks, which have no prompts, are coloured as shell.
"""

from __future__ import annotations

import os
import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "build" / "api"
"""The copy of the package, where mkdocs.yml has mkdocstrings look for it."""
MOVED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""Files at the top of the repository that are pages, and the pages' names."""
NOTEBOOK = "guide/quickstart.md"
PLAYER = "player.html"
EMBEDDED = (
    f'<iframe class="player" src="{PLAYER}" title="A clip that plays" loading="lazy"></iframe>'
)
ANIMATION = re.compile(r"!\[[^\]]*\]\(docs/figures/snitch\.gif\)")

LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
ROLE = re.compile(r":(?:py:)?(?:class|func|meth|mod|data|attr|exc):`~?([^`]+)`")
LITERAL_BLOCK = re.compile(r"::$", re.MULTILINE)


def on_startup(command: str, dirty: bool) -> None:
    """Copy the package, with Markdown for the reStructuredText of its docstrings."""
    shutil.rmtree(SOURCES, ignore_errors=True)
    package = SOURCES / "ivcl_fast"
    for source, target in ((ROOT / "ivcl_fast", package), (ROOT / "kernels", package / "kernels")):
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for path in package.rglob("*.py"):
        path.write_text(LITERAL_BLOCK.sub(":", ROLE.sub(r"`\1`", path.read_text())))


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made from other files."""
    for source, page in MOVED.items():
        text = ANIMATION.sub(EMBEDDED, (ROOT / source).read_text())
        text = relinked(text, "", files)
        files.append(File.generated(config, page, content=text))
    text, found = MarkdownExporter().from_filename(str(ROOT / "examples" / "quickstart.ipynb"))
    files.append(File.generated(config, NOTEBOOK, content=text))
    for name, content in found["outputs"].items():
        path = posixpath.join(posixpath.dirname(NOTEBOOK), name)
        files.append(File.generated(config, path, content=content))
    files.append(File.generated(config, PLAYER, content=player()))
    return files


def player() -> str:
    """Return the page of the sample video."""
    demo = [sys.executable, "-m", "ivcl_fast.demo", "ivcl_fast/sample.avi", "--no-open"]
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        subprocess.run(
            [*demo, "--out", PLAYER], cwd=folder, env=environment, check=True, capture_output=True
        )
        return (Path(folder) / PLAYER).read_text()


def on_page_markdown(text: str, page: Any, config: Any, files: Files) -> str:
    """Rewrite the links of a page that is a file in this folder."""
    if page.file.generated_by:
        return text
    return relinked(text, posixpath.join("docs", page.file.src_uri), files)


def relinked(text: str, source: str, files: Files) -> str:
    """Return Markdown whose links lead to pages; others of the repository become plain text.

    ``source``: the file's path in the repository; links begin in its folder.
    """
    folder = posixpath.dirname(source)

    def link(match: re.Match[str]) -> str:
        picture, label, target = match.groups()
        label = LINK.sub(link, label)  # a picture that is a link
        if re.match(r"[a-z]+:|#", target):
            return f"{picture}[{label}]({target})"
        path, mark, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join(folder, path))
        page = MOVED.get(path) or path.removeprefix("docs/")
        if path not in MOVED and not files.get_file_from_path(page):
            return label
        start = folder.removeprefix("docs").strip("/") or "."
        return f"{picture}[{label}]({posixpath.relpath(page, start)}{mark}{anchor})"

    return LINK.sub(link, text).replace("```console\n", "```bash\n")
