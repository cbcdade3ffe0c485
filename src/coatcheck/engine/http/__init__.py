"""The front end: HTTP request -> worker -> records and payloads for the ranks -> tokens -> HTTP response.

The event loop never touches pixels and never parses a body; it hands buffers on. What the launcher holds is
:class:`coatcheck.engine.http.front_end.FrontEnd`.
"""
