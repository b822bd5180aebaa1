"""Reports as HTML files that hold their pictures, so that a single file opens offline."""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from storage.tracking import Tracking

_TEMPLATE = "report.html.j2"


@dataclass(frozen=True)
class Picture:
    """A figure with a caption; `name` is its file name without the suffix."""

    name: str
    figure: Figure
    caption: str

    @cached_property
    def png(self) -> bytes:
        """The figure as a PNG file. It is drawn only once, because drawing takes long; `Figure.savefig` draws twice."""
        file = io.BytesIO()
        FigureCanvasAgg(self.figure).print_png(file)  # type: ignore[no-untyped-call]
        return file.getvalue()

    def data_url(self) -> str:
        """The figure as a PNG file in a `data:` URL."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclass(frozen=True)
class Table:
    """Rows of text under the names of their columns."""

    columns: list[str]
    rows: list[list[str]]


class Section(NamedTuple):
    """Pictures and tables under a heading and an introductory text."""

    heading: str
    text: str
    parts: Sequence[Picture | Table]


@dataclass
class Report:
    """A title, a table of properties, notes about what is missing, and sections."""

    title: str = ""
    properties: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)

    def add(self, heading: str, text: str, parts: Sequence[Picture | Table]) -> None:
        """Add a section, unless `parts` is empty."""
        if parts:
            self.sections.append(Section(heading, text, parts))

    def pictures(self) -> dict[str, bytes]:
        """The PNG file of every picture by name, in order."""
        parts = [part for section in self.sections for part in section.parts]
        return {part.name: part.png for part in parts if isinstance(part, Picture)}

    def html(self) -> str:
        """The report as one HTML document."""
        environment = Environment(
            loader=PackageLoader("flows.commands", "."),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        return environment.get_template(_TEMPLATE).render(report=self)

    def log(self, tracking: Tracking, run_ids: Sequence[str], folder: str) -> None:
        """Log `report.html` and the PNG file of every picture as artifacts of runs below `folder`."""
        with tempfile.TemporaryDirectory() as written:
            self.write(Path(written))
            for run_id in run_ids:
                tracking.log_directory(run_id, Path(written), folder)

    def write(self, directory: Path) -> Path:
        """Write `report.html` and the PNG file of every picture into `directory`; returns the path of the report."""
        for name, png in self.pictures().items():
            (directory / f"{name}.png").write_bytes(png)
        path = directory / "report.html"
        path.write_text(self.html(), encoding="utf-8")
        return path
