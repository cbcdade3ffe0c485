"""The bodies that OpenAI's API defines, as JSON bytes."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.responses import Response

from coatcheck.errors import (
    ArenaFull,
    BadRequest,
    Overloaded,
    PayloadTooLarge,
    RankLost,
    RequestRejected,
    WorkerFailed,
)

STATUS = {"model_not_found": 404, "strategy_unavailable": 409, "body_too_large": 413}  # by code, where it is not 400
RETRY_AFTER_S = 1.0  # where room in the arena may be free then


@dataclass(frozen=True)
class Failure:
    """An error as a client sees it."""

    status: int
    message: str
    code: str
    outcome: str  # label in the metrics
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def body(self) -> bytes:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": error})

    def response(self) -> Response:
        """As a whole answer."""
        return Response(self.body, self.status, headers=self.headers, media_type="application/json")


def failure(error: BaseException) -> Failure:
    """Any exception as an error; one that we do not expect says nothing about our insides."""
    match error:
        case BadRequest():
            return Failure(STATUS.get(error.code, 400), str(error), error.code, "bad_request", error.param)
        case PayloadTooLarge():
            return Failure(413, str(error), "payload_too_large", "bad_request", "messages")
        case ArenaFull():
            return _overloaded(error, RETRY_AFTER_S)
        case Overloaded():
            return _overloaded(error, error.retry_after)
        case RequestRejected():
            return Failure(500, str(error), "rejected", "rejected")
        case WorkerFailed():
            return Failure(500, str(error), "worker_failed", "worker_failed")
        case RankLost():
            return Failure(503, f"The model is not available: {error}", "rank_lost", "rank_lost")
        case TimeoutError():
            return Failure(504, "The request took longer than this server allows", "timeout", "timeout")
        case _:
            return Failure(500, "The server failed on this request", "internal_error", "error")


def _overloaded(error: BaseException, retry_after_s: float) -> Failure:
    headers = {"Retry-After": str(math.ceil(retry_after_s))}
    return Failure(503, str(error), "overloaded", "overloaded", headers=headers)


def http_failure(status: int, detail: str, headers: dict[str, str]) -> Failure:
    """An error that the router raised: no such path, method not allowed."""
    code = {404: "not_found", 405: "method_not_allowed"}.get(status, "http_error")
    return Failure(status, detail, code, "bad_request", headers=headers)


class Completion:
    """The bodies of one chat completion."""

    def __init__(self, request: str, model: str, prompt_tokens: int) -> None:
        self._id = f"chatcmpl-{request}"
        self._model = model
        self._prompt_tokens = prompt_tokens
        self._created = int(time.time())

    def whole(self, text: str, finish: str, tokens: int) -> bytes:
        """The answer to a request that does not stream."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
        return self._encode("chat.completion", [choice], usage=self._usage(tokens))

    def chunk(self, delta: dict[str, str], finish: str | None, include_usage: bool) -> bytes:
        """A chunk of a stream. With ``include_usage`` every chunk but the last says ``"usage": null``, as at OpenAI."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return self._encode("chat.completion.chunk", [choice], **({"usage": None} if include_usage else {}))

    def usage_chunk(self, tokens: int) -> bytes:
        """The last chunk of a stream whose client asked for ``include_usage``."""
        return self._encode("chat.completion.chunk", [], usage=self._usage(tokens))

    def _usage(self, tokens: int) -> dict[str, int]:
        return {
            "prompt_tokens": self._prompt_tokens,  # placeholders of images included
            "completion_tokens": tokens,
            "total_tokens": self._prompt_tokens + tokens,
        }

    def _encode(self, kind: str, choices: list[dict[str, Any]], **more: Any) -> bytes:
        head = {"id": self._id, "object": kind, "created": self._created, "model": self._model}
        return msgspec.json.encode({**head, "choices": choices, **more})


def model_card(name: str, created: int) -> dict[str, Any]:
    """One entry of /v1/models."""
    return {"id": name, "object": "model", "created": created, "owned_by": "coatcheck"}
