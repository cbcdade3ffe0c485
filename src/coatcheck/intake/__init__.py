"""The intake: an encoded image or video becomes a payload in the arena.

In the host's process, on its event loop: ``pool`` and ``placement``. In worker processes: ``worker``, ``writer`` and
``media``, the only folder that decodes (Pillow, PyAV, transformers).
"""
