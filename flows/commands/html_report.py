"""Reports: HTML with its pictures inside, so that one file opens anywhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from matplotlib.figure import Figure

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1f2430; margin: 0 auto; max-width: 1180px; padding: 2rem 1.5rem }
h1 { margin: 0 0 1rem; font-size: 1.8rem } h2 { margin: 2.6rem 0 .4rem; border-bottom: 2px solid #e8702a }
table { border-collapse: collapse } th, td { text-align: left; padding: .15rem 1.2rem .15rem 0; vertical-align: top }
th { color: #6b7280; font-weight: 500 } figure { margin: 1.4rem 0 } figcaption { color: #4b5563; font-size: .95rem }
.wide { overflow-x: auto } .rows td { border-top: 1px solid #d5d9e0; font-variant-numeric: tabular-nums }
img { max-width: 100%; height: auto } .note { background: #fff4e8; border-left: 4px solid #e8702a; padding: .5rem 1rem }
"""


@dataclass(frozen=True)
class Picture:
    """A figure with a name for its file and a caption."""

    name: str
    figure: Figure
    caption: str


@dataclass(frozen=True)
class Table:
    """Rows of texts below their columns' names."""

    columns: list[str]
    rows: list[list[str]]


@dataclass
class Page:
    """A report in sections."""

    title: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # what could not be shown, and why
    sections: list[tuple[str, str, Sequence[Picture | Table]]] = field(default_factory=list)

    def add(self, heading: str, text: str, parts: Sequence[Picture | Table]) -> None:
        """Add a section, unless it has nothing to show."""
        if parts:
            self.sections.append((heading, text, parts))

    def figures(self) -> list[tuple[str, Figure]]:
        """All figures with their names."""
        parts = [part for _, _, parts in self.sections for part in parts]
        return [(part.name, part.figure) for part in parts if isinstance(part, Picture)]

    def html(self) -> str:
        """The whole page as one text."""
        facts = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in self.facts.items())
        notes = "".join(f'<p class="note">{escape(note)}</p>' for note in self.notes)
        sections = [
            f"<h2>{escape(heading)}</h2><p>{escape(text)}</p>"
            + "".join(_picture(part) if isinstance(part, Picture) else _table(part) for part in parts)
            for heading, text, parts in self.sections
        ]
        return (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(self.title)}</title>'
            f"<style>{_STYLE}</style></head><body><h1>{escape(self.title)}</h1><table>{facts}</table>{notes}"
            f"{''.join(sections)}</body></html>\n"
        )


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in table.columns)
    rows = ["".join(f"<td>{escape(text)}</td>" for text in row) for row in table.rows]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="wide"><table class="rows"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _picture(picture: Picture) -> str:
    file = io.BytesIO()
    picture.figure.savefig(file, format="png")
    data = base64.b64encode(file.getvalue()).decode()
    caption = f"<figcaption>{escape(picture.caption)}</figcaption>" if picture.caption else ""
    return f'<figure><img alt="{escape(picture.name)}" src="data:image/png;base64,{data}">{caption}</figure>'
