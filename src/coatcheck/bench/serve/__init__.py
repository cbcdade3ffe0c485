"""``coatcheck bench serve``: a load on any OpenAI-compatible server, and what its users and neighbours see of it.

``config``, ``result`` and ``measure`` are for other programs too; they need aiohttp, msgspec, numpy and Pillow.
"""
