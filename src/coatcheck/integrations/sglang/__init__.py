"""The SGLang plugin: multimodal inputs travel through the arena, and only tickets ride in SGLang's messages.

``plugin`` is what SGLang loads: it checks what it finds (``targets``, ``support``, ``settings``) and hooks all or
nothing (``rollcall``). The tokenizer process checks a request's inputs in (``tokenizer``, ``front``; bytes by
``codec``); what SGLang sends and broadcasts holds a ticket. Every rank parks the request (``gate``), lays tensors over
the arena in its lane (``ranks``, ``leases``), and hands the request to SGLang's scheduler once all ranks have reported.
What crosses between the processes stands in ``records``. ``metrics`` measures, where SGLang does.

SGLang is imported inside functions, and by ``tokenizer`` and ``ranks``, which only SGLang's processes import.
"""
