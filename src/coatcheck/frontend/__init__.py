"""Stage 1, the front end: HTTP request -> worker -> records and payloads for the ranks -> tokens -> HTTP response.

The event loop never touches pixels and never parses a body; it hands buffers on. What the launcher holds is
:class:`coatcheck.frontend.front_end.FrontEnd`. Only :mod:`coatcheck.frontend.worker` and the modules that it alone
uses import torch, transformers and Pillow.
"""
