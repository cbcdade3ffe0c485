"""A request's body -> ids, items and pixels: all that a worker does for one job."""

from __future__ import annotations

import secrets

import msgspec

from coatcheck.arena.handle import PixelForm
from coatcheck.engine import model_files
from coatcheck.engine.chat import schema as request
from coatcheck.engine.chat.prompt import PromptEncoder, too_long
from coatcheck.engine.http.config import FrontendConfig
from coatcheck.errors import BadRequest, ConfigError
from coatcheck.intake.media import images
from coatcheck.intake.media.fetch import RemoteImages
from coatcheck.intake.media.processor import Cutter, Film, Picture
from coatcheck.intake.records import Item, Job, Processed, Sampling, Stored, prompt_tokens
from coatcheck.intake.writer import Room


class Processor:
    """The model's own text and image processing. Raises ConfigError if the model directory lacks a part."""

    def __init__(self, config: FrontendConfig) -> None:
        self._config = config
        self._context = model_files.context_length(config.model_dir, config.context)
        self._temperature = model_files.default_temperature(config.model_dir, config.default_temperature)
        self._prompt = PromptEncoder(config.model_dir)
        self._stop_ids = model_files.stop_ids(config.model_dir) or self._prompt.stop_ids
        self._remote = RemoteImages(config)
        self._cutter = Cutter(config)

    def process(self, job: Job, body: bytes | memoryview, room: Room) -> Processed:
        """The request; its items' pixels, in the form that the job wants, are where ``room`` says.

        Raises BadRequest for anything that is the client's fault.
        """
        chat = request.parse(body, self._config.model_name, self._config.max_images, self._config.max_videos)
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
        media = [self._open(source) for source in sources]
        tokens = len(prompt) + sum(medium.patches // self._cutter.merge**2 - 1 for medium in media)
        self._sampling(chat, tokens)  # refuses what is too long before it is decoded
        items = self._placed(prompt, self._items(media, job.pixels, room))
        return Processed(
            job=job.job,
            ids=tuple(prompt),
            items=items,
            sampling=self._sampling(chat, prompt_tokens(prompt, items)),
            stream=bool(chat.stream),
            include_usage=bool(chat.stream_options and chat.stream_options.include_usage),
            stop=chat.stop_strings,
        )

    def _open(self, source: request.Source) -> Picture | Film:
        scheme = source.url[:6].lower()
        if scheme.startswith("data:"):
            data = images.from_data_url(source)
        elif scheme.startswith("http"):
            data = self._remote.fetch(source)
        else:
            raise BadRequest(
                f"The {source.kind} must be given by a data: URL or an http(s) URL",
                param=source.param,
                code=f"invalid_{source.kind}_url",
            )
        return (self._cutter.open if source.kind == "image" else self._cutter.open_video)(data, source.param)

    def _items(self, media: list[Picture | Film], form: PixelForm, room: Room) -> list[Item]:
        """Each medium decoded and put where there is room for it, unless it is there already."""
        places = room([medium.want(form) for medium in media]) if media else ()
        items = []
        for medium, place in zip(media, places, strict=True):
            if isinstance(place, Stored):
                items.append(place.item)
                continue
            values, grid = medium.make(form)
            t, h, w = grid
            count = t * h * w // self._cutter.merge**2
            items.append(Item(place(values, form), grid, 0, count, medium.digest, medium.seconds))
        return items

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

    def _sampling(self, chat: request.ChatRequest, prompt: int) -> Sampling:
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
