# SPDX-License-Identifier: Apache-2.0
"""One run, one page: `report.html` holds its numbers, tables, figures and config in a single file.

The page needs no network, script or neighbouring file, so it can be mailed or archived. Class and file names
come from data sets of unknown origin: every string is escaped, and the page forbids scripts and requests.
"""

import os
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from numbers import Integral, Real
from pathlib import Path
from typing import Literal

from PIL import Image


@dataclass(frozen=True)
class Text:
    """Prose; blank lines separate paragraphs."""

    heading: str
    text: str


@dataclass(frozen=True)
class Table:
    """Rows of cells, each as long as `columns`; a column of numbers is aligned right."""

    heading: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True)
class Figure:
    """An encoded image; `alt` says in words what it shows, for readers who cannot see it."""

    caption: str
    data: bytes
    mime: Literal["image/png", "image/gif"]
    alt: str


@dataclass(frozen=True)
class Figures:
    """Images side by side where the screen is wide enough."""

    heading: str
    figures: Sequence[Figure]


@dataclass(frozen=True)
class Preformatted:
    """A config, a log or a traceback, folded away until the reader opens it."""

    heading: str
    text: str


Section = Text | Table | Figures | Preformatted


def write_page(path: Path, *, title: str, summary: Mapping[str, object], sections: Sequence[Section]) -> None:
    """Write the page; an existing one is replaced only when the new one is complete.

    `summary` holds the few facts to read first, by name: the result, its control, the data set, the seed.
    """
    html = _PAGE.format(
        title=escape(title),
        style=_STYLE,
        summary="\n".join(
            f"<div><dt>{escape(name)}</dt><dd>{escape(_format(value))}</dd></div>" for name, value in summary.items()
        ),
        sections="\n".join(_render(section) for section in sections),
    )
    # File names that are not UTF-8 reach Python as lone surrogates, which UTF-8 cannot encode.
    page = html.encode("utf-8", errors="backslashreplace")
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(page)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _render(section: Section) -> str:
    heading = escape(section.heading)
    match section:
        case Preformatted(text=text):
            body = f"<details><summary>{heading}</summary><pre>{escape(text)}</pre></details>"
            return f"<section>{body}</section>"
        case Text(text=text):
            body = "\n".join(f"<p>{escape(paragraph)}</p>" for paragraph in re.split(r"\n\s*\n", text))
        case Table():
            body = _render_table(section)
        case Figures(figures=figures):
            body = f'<div class="figures">{"".join(_render_figure(figure) for figure in figures)}</div>'
    return f"<section><h2>{heading}</h2>\n{body}</section>"


def _render_table(table: Table) -> str:
    rows = [[_format(cell) for cell in row] for row in table.rows]
    classes = [_column_class(column) for column in zip(*rows, strict=True)] or [""] * len(table.columns)

    def render_row(tag: str, cells: Sequence[str]) -> str:
        rendered = (f"<{tag}{css}>{escape(cell)}</{tag}>" for css, cell in zip(classes, cells, strict=True))
        return f"<tr>{''.join(rendered)}</tr>"

    head = render_row("th", table.columns)
    body = "\n".join(render_row("td", row) for row in rows)
    # The wrapper scrolls a wide table by touch or, being focusable, by the arrow keys.
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.heading)}">'
        f"<table><thead>{head}</thead>\n<tbody>{body}</tbody></table></div>"
    )


def _render_figure(figure: Figure) -> str:
    image = Image.open(BytesIO(figure.data))
    # Charts are drawn finer than a screen, at a size in inches; other images are shown dot by dot.
    scale = _SCREEN_DPI / image.info.get("dpi", (_SCREEN_DPI,))[0]
    width, height = (round(scale * side) for side in image.size)
    source = f"data:{figure.mime};base64,{b64encode(figure.data).decode('ascii')}"
    return (
        f'<figure><img src="{escape(source)}" alt="{escape(figure.alt)}" width="{width}" height="{height}">'
        f"<figcaption>{escape(figure.caption)}</figcaption></figure>"
    )


def _format(value: object) -> str:
    """Four significant digits for a float, thousands grouped; anything else as it prints itself."""
    if isinstance(value, Real) and not isinstance(value, Integral):
        number = float(value)
        return f"{number:.4g}" if abs(number) < 1e4 else f"{number:,.0f}"
    return str(value)


def _column_class(cells: Sequence[str]) -> str:
    numeric = all(re.match(r"[-+\u2212\u00b1]? ?\.?\d|nan|inf|$", cell) for cell in cells)
    return ' class="number"' if numeric else ""


_SCREEN_DPI = 96  # of a CSS pixel

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<dl>
{summary}
</dl>
{sections}
</main>
</body>
</html>
"""

_STYLE = """\
:root {
  color-scheme: light dark;
  --paper: #ffffff; --panel: #f6f7f9; --ink: #1b1f24; --muted: #5f6874; --line: #dfe3e8; --accent: #0072b2;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --panel: #1c2026; --ink: #e4e7eb; --muted: #99a3af; --line: #30363f; --accent: #6cb8e6;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", sans-serif;
  -webkit-text-size-adjust: 100%; overflow-wrap: anywhere;
}
main { max-width: 76rem; margin: 0 auto; padding: clamp(1.25rem, 4vw, 3.5rem) clamp(1rem, 4vw, 2.5rem); }
h1 {
  margin: 0 0 1.5rem; font-size: clamp(1.5rem, 1.2rem + 1.6vw, 2.1rem); line-height: 1.2;
  font-weight: 650; letter-spacing: -0.02em; text-wrap: balance;
}
h2, summary { font-size: 1.15rem; font-weight: 620; letter-spacing: -0.01em; line-height: 1.3; }
h2 { margin: 0 0 0.9rem; }
section { margin-top: 2.75rem; }
p { margin: 0 0 0.8rem; max-width: 44rem; white-space: pre-line; }
dl {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 10.5rem), 1fr)); gap: 1px;
  margin: 0; background: var(--panel); border: 1px solid var(--line); border-radius: 10px; overflow: hidden;
}
dl > div { padding: 0.75rem 1rem; box-shadow: 0 0 0 1px var(--line); }
dt { color: var(--muted); font-size: 0.8rem; }
dd { margin: 0.1rem 0 0; font-size: 1.1rem; font-weight: 600; line-height: 1.35; }
dd, table { font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 10px; }
table { width: 100%; border-collapse: collapse; font-size: 0.925rem; overflow-wrap: normal; }
th, td { padding: 0.5rem 1rem; text-align: left; vertical-align: baseline; white-space: nowrap; }
th { background: var(--panel); color: var(--muted); font-size: 0.8rem; font-weight: 600; }
td { border-top: 1px solid var(--line); }
.number { text-align: right; }
.figures {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1.5rem;
  align-items: start;
}
figure { margin: 0; min-width: 0; }
img {
  display: block; max-width: 100%; height: auto; background: #ffffff;
  border: 1px solid var(--line); border-radius: 10px;
}
figcaption { margin-top: 0.6rem; color: var(--muted); font-size: 0.875rem; line-height: 1.45; }
summary { cursor: pointer; }
pre {
  margin: 0.9rem 0 0; padding: 1rem; overflow: auto hidden; overflow-wrap: normal;
  background: var(--panel); border: 1px solid var(--line); border-radius: 10px;
  font: 0.85rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
@media (prefers-color-scheme: dark) { img { filter: brightness(0.9); } }
@media print { section { break-inside: avoid; } }
"""
