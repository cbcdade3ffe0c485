"""A request's body -> ids, items and pixels: all that a worker does for one job."""

from __future__ import annotations

import secrets
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import PIL
import transformers
from blake3 import blake3
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from coatcheck.errors import BadRequest, ConfigError
from coatcheck.frontend import images, model_files, request
from coatcheck.frontend.config import FrontendConfig
from coatcheck.frontend.prompt import PromptEncoder, too_long
from coatcheck.frontend.remote import RemoteImages
from coatcheck.messages import Item, Processed, Sampling, Tensor

Pixels = npt.NDArray[np.float32]


class _Image(NamedTuple):
    pixels: Pixels
    grid: tuple[int, int, int]
    digest: bytes  # identity: of the encoded bytes, under a key that stands for how they are processed


class Processor:
    """The model's own text and image processing. Raises ConfigError if the model directory lacks a part."""

    def __init__(self, config: FrontendConfig) -> None:
        self._config = config
        self._context = model_files.context_length(config.model_dir, config.context)
        self._temperature = model_files.default_temperature(config.model_dir, config.default_temperature)
        self._prompt = PromptEncoder(config.model_dir)
        self._stop_ids = model_files.stop_ids(config.model_dir) or self._prompt.stop_ids
        self._remote = RemoteImages(config)
        try:
            self._images: Any = Qwen2VLImageProcessorPil.from_pretrained(str(config.model_dir), local_files_only=True)
        except Exception as error:  # as for the tokenizer
            raise ConfigError(f"--model: {config.model_dir} has no usable preprocessor_config.json: {error}") from error
        how = f"{transformers.__version__} {PIL.__version__} {self._images.to_json_string()}"
        self._key = blake3(how.encode()).digest()  # the same bytes, processed otherwise, are another item

    def process(self, job: int, body: bytes | memoryview) -> tuple[Processed, list[Pixels]]:
        """The request and, per item, its pixels: float32, contiguous, (patches, channels * temporal * patch * patch).

        Raises BadRequest for anything that is the client's fault.
        """
        chat = request.parse(body, self._config.model_name, self._config.max_images)
        try:
            prompt = self._prompt.encode(chat, self._context)
        except UnicodeError:  # a lone surrogate: JSON can spell it, UTF-8 cannot
            raise BadRequest("A message's text is not valid Unicode", param="messages", code="invalid_text") from None
        sources = list(chat.images())
        if prompt.count(self._prompt.image_id) != len(sources):
            raise ConfigError("the model's chat template does not place every image exactly once")
        if len(prompt) >= self._context:
            raise too_long(
                f"The prompt has {len(prompt)} tokens, which leaves no room for an answer: longer", self._context
            )
        made = [self._image(url, param) for param, url in sources]
        ids, items = self._expand(prompt, made)
        processed = Processed(
            job=job,
            ids=ids,
            items=items,
            sampling=self._sampling(chat, len(ids)),
            stream=bool(chat.stream),
            include_usage=bool(chat.stream_options and chat.stream_options.include_usage),
            stop=chat.stop_strings,
        )
        return processed, [image.pixels for image in made]

    def _image(self, url: str, param: str) -> _Image:
        scheme = url[:6].lower()
        if scheme.startswith("data:"):
            data = images.from_data_url(url, param)
        elif scheme.startswith("http"):
            data = self._remote.fetch(url, param)
        else:
            raise BadRequest("An image must be a data: URL or an http(s) URL", param=param, code="invalid_image_url")
        pixels, grid = self.pixels(images.to_rgb(data, self._config.max_pixels, param))
        return _Image(pixels, grid, blake3(data, key=self._key).digest())

    def pixels(self, image: Image.Image) -> tuple[Pixels, tuple[int, int, int]]:
        """An RGB image as patches, with its grid (t, h, w)."""
        made = self._images(images=[image], return_tensors="np")
        t, h, w = (int(n) for n in made["image_grid_thw"][0])
        return np.ascontiguousarray(made["pixel_values"], dtype=np.float32), (t, h, w)

    def _expand(self, prompt: list[int], made: list[_Image]) -> tuple[tuple[int, ...], tuple[Item, ...]]:
        """Each placeholder becomes as many as its image has embeddings."""
        ids: list[int] = []
        items: list[Item] = []
        for token in prompt:
            if token != self._prompt.image_id:
                ids.append(token)
                continue
            at = len(items)
            image = made[at]
            t, h, w = image.grid
            count = t * h * w // self._images.merge_size**2
            rows, columns = image.pixels.shape
            tensor = Tensor(frame=at, shape=(rows, columns), dtype="float32")
            items.append(Item(pixels=tensor, grid=image.grid, start=len(ids), count=count, digest=image.digest))
            ids.extend([token] * count)
        return tuple(ids), tuple(items)

    def _sampling(self, chat: request.ChatRequest, prompt: int) -> Sampling:
        left = self._context - prompt
        wanted = chat.token_limit
        if left < 1:
            raise too_long(f"the prompt has {prompt}, images included", self._context)
        if wanted is not None and wanted > left:
            param = "max_tokens" if chat.max_completion_tokens is None else "max_completion_tokens"
            raise too_long(f"the prompt has {prompt} and {param} is {wanted}", self._context, param)
        return Sampling(
            max_tokens=min(self._config.default_max_tokens, left) if wanted is None else wanted,
            temperature=self._temperature if chat.temperature is None else chat.temperature,
            top_p=1.0 if chat.top_p is None else chat.top_p,
            seed=secrets.randbits(63) if chat.seed is None else chat.seed,
            stop_ids=self._stop_ids,
        )
