"""A chat completion's body -> prompt ids, sampling and items: all that the engine's worker does for one job."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import msgspec

from coatcheck.engine import model_files
from coatcheck.engine.chat import schema
from coatcheck.engine.chat.prompt import PromptEncoder, too_long
from coatcheck.engine.http.config import FrontendConfig
from coatcheck.engine.records import Processed, Sampling
from coatcheck.errors import BadRequest, ConfigError
from coatcheck.intake.media.processor import MediaProcessor, prepare
from coatcheck.intake.records import Item, prompt_tokens
from coatcheck.intake.writer import PayloadWriter
from coatcheck.wire import Buffer, encode, from_argument


class ChatHandler:
    """The model's own text and image processing; a :class:`coatcheck.intake.worker.Handler`.

    Raises ConfigError if the model directory lacks a part.
    """

    def __init__(self, config_json: str) -> None:
        self._config = from_argument(config_json, FrontendConfig)
        directory = self._config.model_dir
        self._context = model_files.context_length(directory, self._config.context)
        self._temperature = model_files.default_temperature(directory, self._config.default_temperature)
        self._prompt = PromptEncoder(directory)
        self._stop_ids = model_files.stop_ids(directory) or self._prompt.stop_ids
        self._media = MediaProcessor(directory, self._config)

    def handle(self, body: Sequence[Buffer], writer: PayloadWriter) -> tuple[tuple[Item, ...], bytes]:
        """See :class:`coatcheck.intake.worker.Handler`. The second is a Processed."""
        chat = schema.parse(body[0], self._config.model_name, self._config.max_images, self._config.max_videos)
        try:
            prompt = self._prompt.encode(chat, self._context)
        except UnicodeError:  # a lone surrogate: JSON can spell it, UTF-8 cannot
            raise BadRequest("A message's text is not valid Unicode", param="messages", code="invalid_text") from None
        sources = list(chat.sources())
        placeholders = {"image": self._prompt.image_id, "video": self._prompt.video_id}
        if [token for token in prompt if token in placeholders.values()] != [placeholders[s.kind] for s in sources]:
            raise ConfigError("the model's chat template does not place every image and video exactly once")
        if len(prompt) >= self._context:
            raise too_long(
                f"The prompt has {len(prompt)} tokens, which leaves no room for an answer: longer", self._context
            )
        media = [self._media.open(source) for source in sources]
        tokens = len(prompt) + sum(self._media.tokens(medium.patches) - 1 for medium in media)
        self._sampling(chat, tokens)  # refuses what is too long before it is decoded
        items = self._placed(prompt, prepare(media, writer))
        processed = Processed(
            ids=tuple(prompt),
            sampling=self._sampling(chat, prompt_tokens(prompt, items)),
            stream=bool(chat.stream),
            include_usage=bool(chat.stream_options and chat.stream_options.include_usage),
            stop=chat.stop_strings,
        )
        return items, encode(processed)

    def _placed(self, prompt: list[int], made: list[Item]) -> tuple[Item, ...]:
        """The items with the places of their first tokens, once each placeholder stands for all its item's tokens."""
        placeholders = (self._prompt.image_id, self._prompt.video_id)
        places = [at for at, token in enumerate(prompt) if token in placeholders]
        items: list[Item] = []
        more = 0
        for item, place in zip(made, places, strict=True):
            items.append(msgspec.structs.replace(item, start=place + more))
            more += item.count - 1
        return tuple(items)

    def _sampling(self, chat: schema.ChatRequest, prompt: int) -> Sampling:
        left = self._context - prompt
        wanted = chat.token_limit
        if left < 1:
            raise too_long(f"the prompt has {prompt}, images and videos included", self._context)
        if wanted is not None and wanted > left:
            param = "max_tokens" if chat.max_completion_tokens is None else "max_completion_tokens"
            raise too_long(f"the prompt has {prompt} and {param} is {wanted}", self._context, param)
        return Sampling(
            max_tokens=min(self._config.default_max_tokens, left) if wanted is None else wanted,
            temperature=self._temperature if chat.temperature is None else chat.temperature,
            top_p=1.0 if chat.top_p is None else chat.top_p,
            seed=secrets.randbits(63) if chat.seed is None else chat.seed,
            stop_ids=() if chat.ignore_eos else self._stop_ids,
        )
