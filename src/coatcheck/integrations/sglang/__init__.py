"""The SGLang plugin: its multimodal inputs travel by our arena and handles (docs/sglang.md).

SGLang is imported inside functions, and by ``tokenizer`` and ``ranks``, which only SGLang's processes import.
"""
