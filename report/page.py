"""The look that every HTML page shares: one self-contained file for light and dark screens, wide ones and phones,
without a script, everything escaped."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path

from reuse_distill.report.drawing.svg import dark_rules
from reuse_distill.report.plain_text import block

LONG_CELL = 28  # characters: such a cell keeps a width that can be read


@cache
def _style() -> str:
    """The style sheet, and the dark colours of drawings."""
    rules = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
    return f"{rules}@media (prefers-color-scheme: dark) {{{dark_rules()}}}"


class Html(str):
    """Text that is markup already: ``table`` and ``facts`` do not escape it."""


@dataclass(frozen=True)
class Badge:
    """A verdict in a word; ``kind`` is good, bad or open (neither)."""

    text: str
    kind: str = "open"

    def html(self) -> str:
        return f'<span class="badge {self.kind}">{escape(self.text)}</span>'


@dataclass(frozen=True)
class Tile:
    """One number; ``kind`` is empty, ``over`` (a limit is exceeded) or ``none`` (unmeasured)."""

    title: str
    value: str
    note: str = ""
    kind: str = ""

    def html(self) -> str:
        note = f"<small>{escape(self.note)}</small>" if self.note else ""
        title = f"<small>{escape(self.title)}</small>"
        return f'<div class="tile {self.kind}">{title}<b>{escape(self.value)}</b>{note}</div>'


def page(title: str, *, heading: str, body: str, badge: Badge | None = None, about: str = "") -> str:
    """The whole document. ``body`` is markup; the rest is escaped."""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    top = f"<h1>{escape(heading)}</h1>{badge.html() if badge else ''}<p>{escape(about)}</p>"
    style = f"<title>{escape(title)}</title><style>{_style()}</style>"
    document = f'<!doctype html><html lang="en"><head>{head}{style}</head><body><main><header>{top}</header>{body}'
    return block(f"{document}</main></body></html>\n")


def section(title: str, body: str, *, badge: Badge | None = None, where: str = "") -> str:
    """A card with a title; ``body`` is markup."""
    aside = f'<span class="where">{escape(where)}</span>' if where else ""
    top = f'<div class="top"><h2>{escape(title)}</h2>{badge.html() if badge else ""}{aside}</div>'
    return f"<section>{top}{body}</section>"


def tiles(items: Sequence[Tile]) -> str:
    """Numbers beside each other, in as many rows as the screen needs."""
    return f'<div class="tiles">{"".join(item.html() for item in items)}</div>'


def figures(items: Sequence[tuple[str, str]], *, columns: int = 2) -> str:
    """Pictures side by side: (caption, markup); a line break in the caption starts its small print."""
    cells = []
    for caption, picture in items:
        title, _, small = caption.partition("\n")
        note = f"<br><small>{escape(small)}</small>" if small else ""
        cells.append(f"<figure><figcaption>{escape(title)}{note}</figcaption>{picture}</figure>")
    many = {2: "", 3: " three", 6: " six"}[columns]
    return f'<div class="plots{many}">{"".join(cells)}</div>'


def facts(rows: Sequence[tuple[str, str]]) -> str:
    """A list of names and values."""
    body = "".join(f"<tr><td>{_cell(name)}</td><td>{_cell(value)}</td></tr>" for name, value in rows)
    return f'<table class="facts">{body}</table>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numeric: Collection[int] = ()) -> str:
    """A table that scrolls where the screen is narrower; the columns in ``numeric`` (0-based) are set to the right."""

    def cell(index: int, value: str, tag: str) -> str:
        kind = "n" if index in numeric else "long" if tag == "td" and len(value) > LONG_CELL else ""
        return f"<{tag}{f' class={chr(34)}{kind}{chr(34)}' if kind else ''}>{_cell(value)}</{tag}>"

    def row(cells: Sequence[str], tag: str) -> str:
        if len(cells) != len(head):
            raise ValueError(f"a row of {len(cells)} cells below {len(head)} headings")
        return "".join(cell(index, value, tag) for index, value in enumerate(cells))

    body = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in rows)
    whole = f"<table><thead><tr>{row(head, 'th')}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll">{whole}</div>'


def notes(items: Sequence[str], kind: str = "open") -> str:
    """Things that the reader should know before the numbers; nothing where there are none."""
    if not items:
        return ""
    return f'<ul class="notes {kind}">{"".join(f"<li>{_cell(item)}</li>" for item in items)}</ul>'


def code(text: str) -> Html:
    """Text in a fixed-width face; a long one keeps a width that can be read in a table."""
    kind = ' class="long"' if len(text) > 30 else ""
    return Html(f"<code{kind}>{escape(text)}</code>")


def _cell(value: str) -> str:
    return value if isinstance(value, Html) else escape(value)
