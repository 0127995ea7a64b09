"""The documentation's generated parts, and that what CONTRIBUTING.md names is there.

`make docs` builds the site itself, and stops at a broken link.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from docs import tables
from docs.markers import written_anew
from ivcl_fast import kernels

ROOT = Path(__file__).resolve().parents[2]


def test_every_op_is_in_the_api_reference():
    page = (ROOT / "docs" / "api" / "kernels.md").read_text()
    named = set(re.findall(r"\w+", " ".join(re.findall(r"members: \[(.*)\]", page))))
    functions = {name: getattr(kernels, name) for name in kernels.__all__}
    assert named == {name for name, of in functions.items() if not of.__module__.endswith("._op")}


def test_the_search_runs_from_a_folder(browser: Any, tmp_path: Path) -> None:
    shim = (ROOT / "docs" / "iframe-worker.js").as_uri()
    (tmp_path / "page.html").write_text(f'<body><script src="{shim}"></script>')
    worker = "addEventListener('message', (sent) => postMessage(sent.data + ' and back'))"
    (tmp_path / "worker.js").write_text(worker)
    page = browser.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    answer = page.evaluate(
        """() => new Promise((answered) => {
          const worker = new Worker("worker.js");
          worker.addEventListener("message", (sent) => answered(sent.data));
          worker.postMessage("there");
        })"""
    )
    page.close()
    assert answer == "there and back"


@pytest.mark.parametrize("path", tables.pages(), ids=lambda path: path.name)
def test_writing_the_tables_again_changes_nothing(path):
    assert written_anew(path.read_text(), tables.KINDS) == path.read_text()
