"""Engines: requests in, completions out.

:mod:`~divray.engines.face` says what an engine is; it is vLLM, an OpenAI-compatible server, or a plain function.
:mod:`~divray.engines.pool` starts the Ray actors that hold them, and :mod:`~divray.engines.complete` sends a table through.
"""
