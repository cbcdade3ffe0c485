"""Real SGLang servers on GPUs under one load, with coatcheck's plugin and without: ``python -m benchmarks.gpu --help``.

README.md says how to carry it to a machine without a network. A *group* of servers stays up on the same GPUs and is
measured in turns, so that whatever is compared was measured within one interleaved run. Results: docs/gpu.md.
"""
