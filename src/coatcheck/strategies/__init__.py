"""Strategies: how each rank turns what arrived into inputs for the model. See :mod:`coatcheck.strategies.base`."""

from coatcheck.strategies.base import Exchange, Materializer, Strategy
from coatcheck.strategies.inputs import MultimodalInputs, MultimodalItem
from coatcheck.strategies.materialize import Materialize, Positions
from coatcheck.strategies.table import ALIASES, STRATEGIES, strategy_named

__all__ = [
    "ALIASES",
    "STRATEGIES",
    "Exchange",
    "Materialize",
    "Materializer",
    "MultimodalInputs",
    "MultimodalItem",
    "Positions",
    "Strategy",
    "strategy_named",
]
