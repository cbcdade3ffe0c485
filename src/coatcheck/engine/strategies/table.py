"""The strategies there are, by name. Importing this imports no carrier: the front end knows names only."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from coatcheck.engine.strategies.timing import Timing
from coatcheck.errors import UnknownStrategy

if TYPE_CHECKING:
    from coatcheck.engine.strategies.base import Strategy


CARRIERS = ("object", "dict", "handle")  # see coatcheck.engine.strategies.carriers

NEED_ARENA = {"handle"}  # carriers

STRATEGIES = {f"{carrier}-{timing.value}": (carrier, timing) for carrier in CARRIERS for timing in Timing}

AUTO = "auto"  # no strategy of its own: for each request, one of dict and handle; the entry rank puts it into the plan

NAMES = (*STRATEGIES, AUTO)  # what a request may ask for

ALIASES = {
    "17a57fd86": "object-inline",
    "async": "object-background",
    "lazy": "dict-inline",
    "combined": "dict-background",
}

FALLBACK = "dict-inline"  # takes the place of a strategy that cannot start: no lane, no collective of its own


def known() -> str:
    """All names and aliases, for a message."""
    return ", ".join([*NAMES, *(f"{alias} (= {name})" for alias, name in ALIASES.items())])


def canonical(name: str, option: str = "--strategy") -> str:
    """The name that ``name`` is or stands for.

    Raises UnknownStrategy, which names the option and lists the known names.
    """
    found = ALIASES.get(name, name)
    if found not in NAMES:
        raise UnknownStrategy(f"{option}: there is no strategy {name!r}; known: {known()}")
    return found


def carrier_named(name: str) -> str:
    """The carrier of the strategy of that name or alias, "unknown" if there is none."""
    return STRATEGIES.get(ALIASES.get(name, name), ("unknown", None))[0]


def is_compact(name: str) -> bool:
    """True if pixels may travel compact under that name. Else they are wide, as SGLang sends them: a contender."""
    return name == AUTO or carrier_named(name) in NEED_ARENA


def is_background(name: str) -> bool:
    """True if the strategy of that name or alias materializes in the lane."""
    return STRATEGIES.get(ALIASES.get(name, name), ("unknown", None))[1] is Timing.BACKGROUND


@cache
def strategy_named(name: str) -> Strategy:
    """The strategy of that name or alias. Raises UnknownStrategy, also for ``auto``: ranks are told what it chose."""
    from coatcheck.engine.strategies import carriers
    from coatcheck.engine.strategies.base import Strategy

    if canonical(name) == AUTO:
        raise UnknownStrategy(f"{AUTO} is decided before a request reaches the ranks")
    carrier, timing = STRATEGIES[canonical(name)]
    return Strategy(canonical(name), carriers.BY_NAME[carrier](), timing)
