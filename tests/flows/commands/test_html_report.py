from __future__ import annotations

import re

from matplotlib.figure import Figure

from flows.commands.html_report import Picture, Report, Table


def test_report_shows_all_its_parts_in_order() -> None:
    report = Report("Title", {"run": "first"}, ["a note"])
    table = Table(["a", "b"], [["1", "2"], ["3", "4"]])
    report.add("Heading", "A text.", [table, Picture("scores", Figure(), "A caption.")])
    report.add("Empty", "A section without parts is left out.", [])
    text = re.sub(r">\s+<", "><", re.sub(r"base64,[^\"]+", "base64,", report.html()))
    assert text.startswith('<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Title</title><style>')
    body = text[text.index("<body>") :].strip()
    assert body == (
        "<body><h1>Title</h1><table><tr><th>run</th><td>first</td></tr></table>"
        '<p class="note">a note</p><h2>Heading</h2><p>A text.</p>'
        '<div class="wide"><table class="rows"><thead><tr><th>a</th><th>b</th></tr></thead>'
        "<tbody><tr><td>1</td><td>2</td></tr><tr><td>3</td><td>4</td></tr></tbody></table></div>"
        '<figure><img alt="scores" src="data:image/png;base64,"><figcaption>A caption.</figcaption></figure>'
        "</body></html>"
    )
    assert {name: png[1:4] for name, png in report.pictures().items()} == {"scores": b"PNG"}


def test_report_escapes_markup() -> None:
    markup = "<script>'&\""
    report = Report(markup, {markup: markup}, [markup])
    report.add(markup, markup, [Table([markup], [[markup]]), Picture(markup, Figure(), markup)])
    text = report.html()
    assert "<script>" not in text
    assert text.count("&lt;script&gt;&#39;&amp;&#34;") == 11
