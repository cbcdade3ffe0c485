"""The strategies there are, by name. Importing this imports none of them: the front end knows names only."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from coatcheck.errors import UnknownStrategy

if TYPE_CHECKING:
    from coatcheck.strategies.base import Strategy

STRATEGIES = {  # name: module in this folder, class
    "object-inline": ("object_inline", "ObjectInline"),
    "dict-inline": ("dict_inline", "DictInline"),
}

ALIASES = {"17a57fd86": "object-inline", "lazy": "dict-inline"}


def canonical(name: str) -> str:
    """The name that ``name`` is or stands for. Raises UnknownStrategy, which lists the known names."""
    found = ALIASES.get(name, name)
    if found not in STRATEGIES:
        known = ", ".join([*STRATEGIES, *(f"{alias} (= {name})" for alias, name in ALIASES.items())])
        raise UnknownStrategy(f"--strategy: there is no strategy {name!r}; known: {known}")
    return found


@cache
def strategy_named(name: str) -> Strategy:
    """The strategy of that name or alias. Raises UnknownStrategy."""
    module, kind = STRATEGIES[canonical(name)]
    strategy: Strategy = getattr(import_module(f"coatcheck.strategies.{module}"), kind)()
    return strategy
