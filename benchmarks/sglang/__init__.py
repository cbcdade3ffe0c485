"""Real SGLang servers on the CPU, with the plugin and without; they need ``.peers/sglang``."""
