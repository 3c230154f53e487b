"""The look that every HTML report shares: one self-contained file, light, without a script, everything escaped."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape

STYLE = """
:root { color-scheme: light; --ink:#1c2430; --soft:#5b6472; --line:#e3e7ed; --blue:#2f6fde;
  --good:#17805a; --bad:#c8372d; --open:#9a6a00; }
* { box-sizing: border-box; }
body { margin:0; background:#f5f6f8; color:var(--ink);
  font:14px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif; }
main { max-width:1320px; margin:0 auto; padding:22px 26px 40px; }
header { display:flex; align-items:baseline; gap:14px; margin-bottom:14px; flex-wrap:wrap; }
h1 { font-size:20px; margin:0; font-weight:650; letter-spacing:-.01em; }
h3 { font-size:14px; margin:16px 0 6px; font-weight:600; }
header p, p.lead { margin:0; color:var(--soft); } p.lead { margin-bottom:12px; max-width:130ch; }
.badge { padding:3px 11px; border-radius:99px; font-weight:600; font-size:13px; white-space:nowrap; }
.good { color:var(--good); background:#e4f4ed; } .bad { color:var(--bad); background:#fbe9e7; }
.open { color:var(--open); background:#fbf1dc; }
section { background:#fff; border:1px solid var(--line); border-radius:10px; padding:16px 18px 14px;
  margin-bottom:16px; }
h2 { font-size:16px; margin:0; font-weight:650; }
.top { display:flex; align-items:center; gap:12px; margin-bottom:12px; }
.top span.where { color:var(--soft); margin-left:auto; text-align:right; }
.tiles { display:grid; grid-template-columns:repeat(8,1fr); gap:8px; margin-bottom:12px; }
.tile { border:1px solid var(--line); border-radius:8px; padding:8px 10px; min-width:0; background:#fff; }
.tile b { display:block; font-size:18px; font-weight:650; font-variant-numeric:tabular-nums; white-space:nowrap;
  overflow:hidden; text-overflow:ellipsis; }
.tile small { color:var(--soft); display:block; } .tile.over { border-color:#eaa8a2; background:#fdf4f3; }
.tile.over b { color:var(--bad); }
.tile.none b { color:var(--open); font-size:14px; line-height:26px; font-weight:500; }
.plots { display:grid; grid-template-columns:1fr 1fr; gap:14px 22px; align-items:start; }
.plots.three { grid-template-columns:1fr 1fr 1fr; } .plots.six { grid-template-columns:repeat(6,1fr); gap:14px; }
figure { margin:0; min-width:0; } figcaption { font-weight:600; margin-bottom:2px; }
figcaption small { font-weight:400; color:var(--soft); }
svg { width:100%; height:auto; display:block; font-family:inherit; }
table { border-collapse:collapse; width:100%; } td, th { padding:4px 12px 4px 0; vertical-align:top; text-align:left; }
td { border-top:1px solid var(--line); } th { color:var(--soft); font-weight:500; white-space:nowrap; }
td.n, th.n { text-align:right; font-variant-numeric:tabular-nums; white-space:nowrap; }
td.n:not(:last-child), th.n:not(:last-child) { padding-right:26px; }
td:last-child, th:last-child { padding-right:0; }
a { color:var(--blue); text-decoration:none; } a:hover { text-decoration:underline; }
table.facts tr:first-child td { border-top:0; }
table.facts td:first-child { color:var(--soft); white-space:nowrap; width:1%; padding-right:18px; }
table.facts td:last-child { overflow-wrap:anywhere; }
code { font:12px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace; overflow-wrap:anywhere; }
ul.notes { color:var(--ink); margin:0 0 12px; padding:9px 14px 9px 28px;
  background:#fff8ec; border:1px solid #f1dfbd; border-radius:8px; }
ul.notes.bad { background:#fdf4f3; border-color:#f0c8c4; color:inherit; }
ul.notes.good { background:#f3faf7; border-color:#cfe7dc; color:inherit; }
details { margin-top:8px; } summary { cursor:pointer; color:var(--soft); }
footer { color:var(--soft); font-size:13px; margin-top:4px; }
@media (max-width:900px) { .tiles { grid-template-columns:repeat(4,1fr) !important; }
  .plots, .plots.three, .plots.six { grid-template-columns:1fr; } }
"""


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
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    top = f"<h1>{escape(heading)}</h1>{badge.html() if badge else ''}<p>{escape(about)}</p>"
    return (
        f'<!doctype html><html lang="en"><head>{head}<title>{escape(title)}</title><style>{STYLE}</style></head>'
        f"<body><main><header>{top}</header>{body}</main></body></html>\n"
    )


def section(title: str, body: str, *, badge: Badge | None = None, where: str = "") -> str:
    """A card with a title; ``body`` is markup."""
    aside = f'<span class="where">{escape(where)}</span>' if where else ""
    top = f'<div class="top"><h2>{escape(title)}</h2>{badge.html() if badge else ""}{aside}</div>'
    return f"<section>{top}{body}</section>"


def tiles(items: Sequence[Tile]) -> str:
    """A row of numbers, as wide as there are tiles."""
    columns = f' style="grid-template-columns:repeat({len(items)},1fr)"' if len(items) < 8 else ""
    return f'<div class="tiles"{columns}>{"".join(item.html() for item in items)}</div>'


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
    """A table; the columns in ``numeric`` (0-based) are set to the right."""

    def row(cells: Sequence[str], tag: str) -> str:
        kinds = [' class="n"' if i in numeric else "" for i in range(len(cells))]
        return "".join(f"<{tag}{kind}>{_cell(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))

    body = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in rows)
    return f"<table><thead><tr>{row(head, 'th')}</tr></thead><tbody>{body}</tbody></table>"


def notes(items: Sequence[str], kind: str = "open") -> str:
    """Things that the reader should know before the numbers; nothing where there are none."""
    if not items:
        return ""
    return f'<ul class="notes {kind}">{"".join(f"<li>{_cell(item)}</li>" for item in items)}</ul>'


def code(text: str) -> Html:
    """Text in a fixed-width face."""
    return Html(f"<code>{escape(text)}</code>")


def _cell(value: str) -> str:
    return value if isinstance(value, Html) else escape(value)
