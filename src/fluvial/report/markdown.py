"""Markdown: words that come from data, escaped; tables."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|~$])")


def plain(text: str) -> str:
    """Return text that Markdown shows as it is, whatever it holds: no markup, no HTML, one line.

    >>> plain("Mass_0 <b>|"), plain("M\\n# not a heading")
    ('Mass\\\\_0 &lt;b&gt;\\\\|', 'M \\\\# not a heading')
    """
    one = " ".join(text.split())
    one = one.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", one)


def code(text: str) -> str:
    """Return a code span that holds text, whatever backticks are in it.

    >>> code("a`b")
    '``a`b``'
    """
    one = " ".join(text.split()) or " "
    longest = max((len(run) for run in re.findall("`+", one)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if one.startswith("`") or one.endswith("`") else ""
    return f"{fence}{pad}{one}{pad}{fence}"


def fenced(text: str, language: str = "") -> str:
    """Return a code block that holds text, whatever fences are in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; cells are Markdown already, on one line each."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
