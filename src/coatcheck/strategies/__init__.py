"""Strategies: how each rank turns what arrived into inputs for the model.

:mod:`~coatcheck.strategies.base` has the Protocol, :mod:`~coatcheck.strategies.table` the names; each strategy has a
file.
"""
