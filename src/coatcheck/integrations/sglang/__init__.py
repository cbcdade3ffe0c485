"""The SGLang plugin: multimodal inputs travel through the arena, and only claims ride in SGLang's messages.

``plugin`` is what SGLang loads: it checks what it finds (``targets``, ``support``, ``settings``) and hooks all or
nothing (``rollcall``). The tokenizer process checks a request's inputs in (``tokenizer``, ``arena_owner``; bytes by
``codec``) and has every rank prepare them (``prepare``), which lays tensors over the arena beside its scheduler's
thread (``ranks``, ``leases``). Then it sends the request, and each scheduler claims what lies ready. What crosses
between the processes stands in ``records``. ``metrics`` measures, where SGLang does.

SGLang is imported inside functions, and by ``tokenizer`` and ``ranks``, which only SGLang's processes import.
"""
