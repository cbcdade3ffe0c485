"""Docstrings as Markdown: the roles and literal blocks that they are written with, as Markdown has them."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Roles(griffe.Extension):
    """``:class:`~a.B``` becomes code, and a paragraph of two colons, which announces a literal block, goes."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for each object that is loaded."""
        if obj.docstring:
            text = re.sub(r":[a-z]+:`~?([^`]+)`", r"`\1`", obj.docstring.value)
            obj.docstring.value = re.sub(r"^::$", "", text, flags=re.M)
