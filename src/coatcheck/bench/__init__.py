"""``coatcheck bench``: measurements of the reference engine, and of any OpenAI-compatible server."""
