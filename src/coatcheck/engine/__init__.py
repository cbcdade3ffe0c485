"""The reference engine, one of two programs on the core: an OpenAI-compatible server on a tensor-parallel group."""
