"""Strategies: how each rank turns what arrived into inputs for the model.

``base`` has the Protocol, ``table`` the names, ``materialize`` the work of a rank; ``carriers`` the three carriers.
"""
