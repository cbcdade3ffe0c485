"""Documents whose tables are made from measurements: ``measure`` and ``write``."""
