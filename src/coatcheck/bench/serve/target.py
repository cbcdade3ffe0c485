"""Getting to know a server before the load: its model, the fields that it accepts, and what an idle one takes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import aiohttp
import msgspec

from coatcheck.bench.serve.bodies import PROBE_TOKENS, Bodies, Target, text_body
from coatcheck.bench.serve.client import API_KEY, Answer, ask, get, message
from coatcheck.bench.serve.config import Load, root_of
from coatcheck.errors import ConfigError

FIND_S = 30.0  # for GET /v1/models and /health
ATTEMPTS = 3  # where the server says that it failed: under load some do now and then
AGAIN_S = 0.5
IGNORE_EOS = {"ignore_eos": True}
USAGE = {"stream_options": {"include_usage": True}}


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


async def find(http: aiohttp.ClientSession, url: str, load: Load, bodies: Bodies) -> tuple[Target, Answer]:
    """The server, and its answer to one image request of the load.

    Raises ConfigError where it cannot be reached, does not serve the model, or refuses the request, in its own words.
    """
    root = root_of(url)
    model = await _model(http, root, load.model)
    status, _, _ = await get(http, f"{root}/health", FIND_S)
    answer = Answer(0.0, error="not asked")
    for fields in _fields():
        target = Target(root, model, fields, status not in (0, 404, 405), 0.0)
        for _ in range(ATTEMPTS):
            answer = await ask(http, root, bodies.next(target), load.timeout_s)
            if not answer.error.startswith("5"):
                break
            await asyncio.sleep(AGAIN_S)
        if not answer.error.startswith(("400:", "422:")):
            break
    if answer.error:
        raise ConfigError(f"--url: {root} did not answer an image request of this load: {answer.error}")
    start = time.monotonic()
    probe = await ask(http, root, text_body(target, PROBE_TOKENS), load.timeout_s)
    if probe.error:
        raise ConfigError(f"--url: {root} did not answer a text request: {probe.error}")
    return msgspec.structs.replace(target, idle_s=time.monotonic() - start), answer


def _fields() -> Iterator[dict[str, Any]]:
    """From the best to what every server takes."""
    yield IGNORE_EOS | USAGE
    yield USAGE
    yield IGNORE_EOS
    yield {}


async def _model(http: aiohttp.ClientSession, root: str, wanted: str) -> str:
    status, body, why = await get(http, f"{root}/v1/models", FIND_S)
    if why:
        raise ConfigError(f"--url: {root} cannot be reached: {why}")
    if status in (401, 403):
        raise ConfigError(f"--url: {root} wants a key ({message(body)}); set {API_KEY} in the environment")
    try:
        known = [model.id for model in msgspec.json.decode(body, type=_Models).data] if status == 200 else []
    except msgspec.DecodeError:
        known = []
    if not known and not wanted:
        raise ConfigError(f"--url: {root}/v1/models lists no model (status {status}); name one by --model")
    if known and wanted and wanted not in known:
        raise ConfigError(f"--model: {wanted!r} is not served by {root}; it has {', '.join(known)}")
    return wanted or known[0]
