"""The strategies there are, by name."""

from __future__ import annotations

from coatcheck.errors import UnknownStrategy
from coatcheck.strategies.base import Strategy
from coatcheck.strategies.dict_inline import DictInline
from coatcheck.strategies.object_inline import ObjectInline

STRATEGIES: dict[str, Strategy] = {strategy.name: strategy for strategy in (ObjectInline(), DictInline())}

ALIASES = {"17a57fd86": "object-inline", "lazy": "dict-inline"}


def strategy_named(name: str) -> Strategy:
    """The strategy of that name or alias. Raises UnknownStrategy, which lists the known names."""
    try:
        return STRATEGIES[ALIASES.get(name, name)]
    except KeyError:
        known = ", ".join([*STRATEGIES, *(f"{alias} (= {name})" for alias, name in ALIASES.items())])
        raise UnknownStrategy(f"--strategy: there is no strategy {name!r}; known: {known}") from None
