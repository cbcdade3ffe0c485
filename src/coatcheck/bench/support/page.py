"""What the pages of reports have in common: their templates, and values as text."""

from __future__ import annotations

from typing import Any

import jinja2

from coatcheck.bench.support.cells import NONE


def templates() -> jinja2.Environment:
    """``engine/page.html.j2`` and the like: those of :mod:`coatcheck.bench`, by their places there."""
    loader = jinja2.PackageLoader("coatcheck", "bench")
    return jinja2.Environment(
        autoescape=True, loader=loader, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def shown(value: Any) -> str:
    """An option or a fact for people to read."""
    match value:
        case None | "":
            return NONE
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.6g}"
        case dict():
            return ", ".join(f"{name} {shown(of)}" for name, of in value.items()) or NONE
        case list() | tuple():
            return ", ".join(map(shown, value)) or NONE
        case _:
            return str(value)
