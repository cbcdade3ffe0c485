"""The contenders, a module for each environment; imported only there.

A module has ``SIDES``: for each contender's name, what makes its front end's side and a rank's side of a
:class:`~benchmarks.handoff.meter.Place`. The front end's is made first. ``join(place)``, if a module has it, is
called once on each rank before.
"""
