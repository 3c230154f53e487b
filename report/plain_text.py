"""Text from elsewhere (a device, a file) made harmless for a terminal, a CI log and Markdown; tables of text."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Control characters (terminal escape sequences among them), line separators, marks that reorder text, lone surrogates.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_MARKUP = re.compile(r"([\\`*_\[\]|~])")


def one_line(text: str) -> str:
    """``text`` on one line, every character printable: line breaks become spaces, other controls ``?``."""
    return _UNPRINTABLE.sub(lambda match: " " if match[0] in "\t\n\r\u2028\u2029" else "?", text)


def block(text: str) -> str:
    """``text`` with its line breaks, other controls as ``?``."""
    return _UNPRINTABLE.sub(lambda match: "\n" if match[0] == "\n" else "?", text)


def log_text(text: str) -> str:
    """One line for a terminal or CI log: what a CI server would take for a command (``::error::``, ``##[…]``) is
    pulled apart."""
    return one_line(text).replace("::", ": :").replace("##[", "# #[")


def markdown_text(text: str) -> str:
    """One line of Markdown that shows ``text`` as it is: no markup, no HTML, no mention."""
    escaped = _MARKUP.sub(r"\\\1", log_text(text).replace("&", "&amp;"))
    return escaped.replace("<", "&lt;").replace("@", "&#64;")


def text_table(rows: Sequence[Sequence[str]], *, rule: bool = False) -> str:
    """Columns aligned and never cut, the first row being the heading; ``rule`` draws a line below it."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], *(["  ".join("-" * width for width in widths)] if rule else []), *lines[1:]])
