"""The ranks: one process per GPU (or CPU share), all executing the same plans. See :mod:`coatcheck.ranks.loop`."""
