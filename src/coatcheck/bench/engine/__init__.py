"""``coatcheck bench engine``: the strategies measured side by side, and what was measured as table, JSON and HTML."""
