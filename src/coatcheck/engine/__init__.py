"""The reference engine, one of two hosts of the core: an OpenAI-compatible server on a tensor-parallel group."""
