"""A self-contained HTML page with embedded pictures."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path

from ivcl_fast.report.tables import Table

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd }
figure { margin: 1rem 0 2rem }
img { max-width: 100%; border: 1px solid #eee }
figcaption { color: #555; font-size: 0.9rem; max-width: 60rem }
table { border-collapse: collapse; font-size: 0.9rem }
th, td { border: 1px solid #ddd; padding: 0.25rem 0.7rem; text-align: left; vertical-align: top }
th { background: #f6f6f6 }
"""


class Page:
    """Builds a page from top to bottom; text is escaped."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.parts = [f"<h1>{escape(title)}</h1>"]

    def heading(self, text: str) -> None:
        self.parts.append(f"<h2>{escape(text)}</h2>")

    def text(self, text: str) -> None:
        self.parts.append(f"<p>{escape(text)}</p>")

    def table(self, table: Table) -> None:
        self.parts.append(table.html())

    def picture(self, path: Path, caption: str) -> None:
        """Embed a PNG or GIF file."""
        data = base64.b64encode(path.read_bytes()).decode()
        source = f"data:image/{path.suffix.removeprefix('.')};base64,{data}"
        self.parts.append(
            f'<figure><img alt="{escape(caption)}" src="{source}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )

    def __str__(self) -> str:
        body = "\n".join(self.parts)
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width">\n'
            f"<title>{escape(self.title)}</title>\n<style>{STYLE}</style>\n</head>\n"
            f"<body>\n{body}\n</body>\n</html>\n"
        )
