"""The body of POST /v1/chat/completions: JSON -> checked, typed values. Every refusal names the field.

A field that we do not support is refused if its value would change the answer (``tools``, ``logprobs``, ``n`` > 1, ...)
and ignored if it would not (``user``, ``metadata``, ``store``, unknown ones).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from coatcheck.errors import BadRequest
from coatcheck.intake.media.source import Source
from coatcheck.wire import Buffer

MAX_STOP_STRINGS = 4  # as at OpenAI
MAX_STOP_LENGTH = 1024  # characters; bounds what the matcher holds back

# Unsupported fields, and the values that mean "not used".
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "response_format": ({"type": "text"},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "top_k": (0, -1),
    "min_p": (0,),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
}


class ImageUrl(msgspec.Struct, frozen=True):
    """``detail`` is ignored: the model's processor decides the resolution."""

    url: str


class TextPart(msgspec.Struct, frozen=True, tag_field="type", tag="text"):
    text: str


class ImagePart(msgspec.Struct, frozen=True, tag_field="type", tag="image_url"):
    image_url: ImageUrl


class VideoUrl(msgspec.Struct, frozen=True):
    """As vLLM and SGLang have it; OpenAI has none."""

    url: str


class VideoPart(msgspec.Struct, frozen=True, tag_field="type", tag="video_url"):
    video_url: VideoUrl


class Message(msgspec.Struct, frozen=True):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart | ImagePart | VideoPart] | None = None
    tool_calls: Any = None
    function_call: Any = None


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None


class ChatRequest(msgspec.Struct, frozen=True):
    """The fields we serve. Null means "not given" wherever OpenAI allows it."""

    messages: list[Message]
    model: str
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None  # as vLLM and SGLang have it: the answer goes on to its limit, for measurements

    @property
    def token_limit(self) -> int | None:
        """``max_completion_tokens``, or its older name ``max_tokens``; None where the client gave neither."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def stop_strings(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def sources(self) -> Iterator[Source]:
        """Every image and video, in the order of the prompt."""
        for at, message in enumerate(self.messages):
            if isinstance(message.content, list):
                for part_at, part in enumerate(message.content):
                    where = f"messages[{at}].content[{part_at}]"
                    if isinstance(part, ImagePart):
                        yield Source("image", f"{where}.image_url.url", part.image_url.url)
                    elif isinstance(part, VideoPart):
                        yield Source("video", f"{where}.video_url.url", part.video_url.url)


_requests = msgspec.json.Decoder(ChatRequest)
_unsupported = msgspec.json.Decoder(
    msgspec.defstruct("Unsupported", [(name, Any, None) for name in _UNSUPPORTED], frozen=True)
)


def parse(body: Buffer, model_name: str, max_images: int, max_videos: int) -> ChatRequest:
    """A request that is right in itself (images and videos are not looked at, tokens not counted).

    Raises BadRequest.
    """
    try:
        request = _requests.decode(body)
        unsupported = _unsupported.decode(body)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"The body is not valid JSON: {error}", code="invalid_json") from None
    except RecursionError:
        raise BadRequest("The body is nested too deeply", code="invalid_json") from None
    if request.model != model_name:
        raise BadRequest(
            f"The model {request.model[:100]!r} does not exist; this server has {model_name!r}",
            param="model",
            code="model_not_found",
        )
    for name, unused in _UNSUPPORTED.items():
        value = getattr(unsupported, name)
        if value is not None and not any(_means(value, one) for one in unused):
            raise BadRequest(f"{name} is not supported by this server", param=name, code="unsupported_parameter")
    _check_messages(request)
    _check_sampling(request)
    for kind, most in (("image", max_images), ("video", max_videos)):
        found = [source for source in request.sources() if source.kind == kind]
        if len(found) > most:
            raise BadRequest(
                f"The request has {len(found)} {kind}s; at most {most} are allowed",
                param=found[most].param,
                code=f"too_many_{kind}s",
            )
    return request


def _means(value: object, unused: object) -> bool:
    """Equality that tells 0 from False."""
    return value == unused and isinstance(value, bool) == isinstance(unused, bool)


def _check_messages(request: ChatRequest) -> None:
    if not request.messages:
        raise BadRequest("messages must have at least one message", param="messages", code="empty_array")
    for at, message in enumerate(request.messages):
        where = f"messages[{at}]"
        for name in ("tool_calls", "function_call"):
            if getattr(message, name):
                raise BadRequest(f"{name} is not supported", param=f"{where}.{name}", code="unsupported_parameter")
        if message.content is None:
            raise BadRequest(
                "content must be a string or a list of parts", param=f"{where}.content", code="invalid_type"
            )
        if message.content == []:
            raise BadRequest("content must have at least one part", param=f"{where}.content", code="empty_array")
        if isinstance(message.content, list) and message.role != "user":
            for part_at, part in enumerate(message.content):
                if not isinstance(part, TextPart):
                    raise BadRequest(
                        f"Images and videos are allowed in user messages only, not in one of role {message.role!r}",
                        param=f"{where}.content[{part_at}]",
                    )


def _check_sampling(request: ChatRequest) -> None:
    both = request.max_tokens, request.max_completion_tokens
    _require(None in both or both[0] == both[1], "max_tokens", "equal to max_completion_tokens, or not given")
    for name, value in (("max_tokens", both[0]), ("max_completion_tokens", both[1])):
        _require(value is None or value >= 1, name, "1 or more")
    _require(request.temperature is None or 0 <= request.temperature <= 2, "temperature", "between 0 and 2")
    _require(request.top_p is None or 0 < request.top_p <= 1, "top_p", "above 0 and at most 1")
    _require(request.seed is None or -(2**63) <= request.seed < 2**63, "seed", "a 64-bit signed integer")
    _require(request.n in (None, 1), "n", "1: this server returns one choice")
    _require(len(request.stop_strings) <= MAX_STOP_STRINGS, "stop", f"at most {MAX_STOP_STRINGS} strings")
    for text in request.stop_strings:
        _require(1 <= len(text) <= MAX_STOP_LENGTH, "stop", f"made of strings of 1 to {MAX_STOP_LENGTH} characters")
    _require(request.stream_options is None or bool(request.stream), "stream_options", "given only with stream: true")


def _require(holds: bool, param: str, allowed: str) -> None:
    if not holds:
        raise BadRequest(f"{param} must be {allowed}", param=param)


def _invalid(text: str) -> BadRequest:
    """msgspec says "Expected `int`, got `str` - at `$.a[0].b`": the path becomes the param."""
    message, _, path = text.partition(" - at `")
    param = path.removesuffix("`").removeprefix("$").removeprefix(".") or None
    if missing := re.fullmatch(r"Object missing required field `(\w+)`", message):
        param = f"{param}.{missing[1]}" if param else missing[1]
        return BadRequest(f"{param} is required", param=param, code="missing_required_parameter")
    where = param or "the body"
    return BadRequest(f"Invalid {where}: {message[:1].lower()}{message[1:]}", param=param, code="invalid_type")
