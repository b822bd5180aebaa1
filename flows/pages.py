"""Reports: HTML with its pictures inside, so that one file opens anywhere."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from html import escape

from matplotlib.figure import Figure

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1f2430; margin: 0 auto; max-width: 1180px; padding: 2rem 1.5rem }
h1 { margin: 0 0 1rem; font-size: 1.8rem } h2 { margin: 2.6rem 0 .4rem; border-bottom: 2px solid #e8702a }
table { border-collapse: collapse } th, td { text-align: left; padding: .15rem 1.2rem .15rem 0; vertical-align: top }
th { color: #6b7280; font-weight: 500 } figure { margin: 1.4rem 0 } figcaption { color: #4b5563; font-size: .95rem }
img { max-width: 100%; height: auto } .note { background: #fff4e8; border-left: 4px solid #e8702a; padding: .5rem 1rem }
"""


@dataclass(frozen=True)
class Picture:
    """A figure with a name for its file and a caption."""

    name: str
    figure: Figure
    caption: str


@dataclass
class Page:
    """A report in sections."""

    title: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # what could not be shown, and why
    sections: list[tuple[str, str, list[Picture]]] = field(default_factory=list)

    def add(self, heading: str, text: str, pictures: list[Picture]) -> None:
        """Add a section, unless it has no picture."""
        if pictures:
            self.sections.append((heading, text, pictures))

    def figures(self) -> list[tuple[str, Figure]]:
        """All figures with their names."""
        return [(picture.name, picture.figure) for _, _, pictures in self.sections for picture in pictures]

    def html(self) -> str:
        """The whole page as one text."""
        facts = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in self.facts.items())
        notes = "".join(f'<p class="note">{escape(note)}</p>' for note in self.notes)
        parts = [
            f"<h2>{escape(heading)}</h2><p>{escape(text)}</p>" + "".join(map(_picture, pictures))
            for heading, text, pictures in self.sections
        ]
        return (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(self.title)}</title>'
            f"<style>{_STYLE}</style></head><body><h1>{escape(self.title)}</h1><table>{facts}</table>{notes}"
            f"{''.join(parts)}</body></html>\n"
        )


def _picture(picture: Picture) -> str:
    file = io.BytesIO()
    picture.figure.savefig(file, format="png")
    data = base64.b64encode(file.getvalue()).decode()
    caption = f"<figcaption>{escape(picture.caption)}</figcaption>" if picture.caption else ""
    return f'<figure><img alt="{escape(picture.name)}" src="data:image/png;base64,{data}">{caption}</figure>'
