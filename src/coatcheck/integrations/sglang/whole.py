"""Mode ``whole``, the tokenizer's side: a request's images go to a worker as they came, encoded.

Around ``process_mm_data_async`` of the manager's own QwenVLImageProcessor (SGLang 0.5.23: one class for Qwen2-VL,
Qwen2.5-VL, Qwen3-VL, their MoE, and Qwen3.5). What it returns is what SGLang returns, but for each item's feature, a
:class:`~coatcheck.integrations.sglang.compact.Stored` in place of float32. The event loop touches no pixel.

Invariants:

* Whatever is not taken, and whatever fails here (an image that cannot be read, a worker that died, a full arena), goes
  SGLang's own way with the very arguments it came with. So errors are SGLang's, and nothing is lost but time.
* The prompt, its spans and positions are to the bit what SGLang would have made (:mod:`.compose`).
* Equal bytes, processed equally, have equal identities: of their digest, not of their features.
"""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from urllib.parse import unquote, urlparse

import torch
from sglang.srt.environ import envs
from sglang.srt.managers.schedule_batch import Modality, MultimodalDataItem, MultimodalProcessorOutput

from coatcheck.arena.handle import Handle
from coatcheck.errors import ArenaError, BadRequest, ConfigError, Overloaded, RequestError
from coatcheck.intake.records import Item
from coatcheck.integrations.sglang.arena_owner import ArenaHolding, ArenaOwner, Trouble
from coatcheck.integrations.sglang.compact import Stored
from coatcheck.integrations.sglang.compose import Grid, expand, positions
from coatcheck.integrations.sglang.intake import Intake, NoWorker, default_workers
from coatcheck.integrations.sglang.metrics import Taken
from coatcheck.integrations.sglang.records import ImageProcessorConfig, in_share
from coatcheck.integrations.sglang.targets import signature
from coatcheck.pixels import PixelTable

log = logging.getLogger(__name__)

PROCESSOR = ("sglang.srt.multimodal.processors.qwen_vl", "QwenVLImageProcessor")
SIGNATURE = "(image_data, input_text, request_obj, *args, **kwargs)"
# Image processors of transformers that were looked at: what they do with a value depends on it and its channel alone.
KINDS = (
    "transformers.models.qwen2_vl.image_processing_qwen2_vl:Qwen2VLImageProcessor",
    "transformers.models.qwen2_vl.image_processing_pil_qwen2_vl:Qwen2VLImageProcessorPil",
)
# Types of models of which the prompt is composed as QwenVLImageProcessor does it, whichever of its ways it takes.
MODELS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
OPTIONS = frozenset({"min_pixels", "max_pixels"})  # of --mm-process-config for images, that are passed on


class NotTaken(Exception):
    """The request goes SGLang's own way."""

    def __init__(self, why: Taken) -> None:
        super().__init__(why)
        self.why: Taken = why


def refusal(processor: Any) -> str:
    """Why this server's images cannot be processed in workers; empty if they can."""
    kind = type(processor)
    if (kind.__module__, kind.__name__) != PROCESSOR:
        return f"{kind.__name__} processes this model's images"
    if signature(processor.process_mm_data_async) != SIGNATURE:
        return f"its process_mm_data_async takes {signature(processor.process_mm_data_async)}"
    if processor.model_type not in MODELS:
        return f"models of type {processor.model_type} were not tested"
    if _kind(processor._processor.image_processor) not in KINDS:
        return f"{_kind(processor._processor.image_processor)} was not tested"
    if not OPTIONS.issuperset(processor.image_config):
        return f"--mm-process-config: {', '.join(sorted(processor.image_config.keys() - OPTIONS))} were not tested"
    if processor.mm_preprocess_cache.enabled:
        return "--mm-preprocess-cache-size-mb asks for SGLang's own processing"
    if envs.SGLANG_MM_SKIP_COMPUTE_HASH.get():
        return "SGLANG_MM_SKIP_COMPUTE_HASH: items are to have no identities by content"
    return ""


def _kind(image_processor: Any) -> str:
    return f"{type(image_processor).__module__}:{type(image_processor).__qualname__}"


def config(processor: Any) -> ImageProcessorConfig:
    """Of the processor that SGLang has made. Raises ConfigError if it has something that is no JSON."""
    image_processor = processor._processor.image_processor
    settings = image_processor.to_dict()
    settings.pop("image_processor_type", None)
    try:
        return ImageProcessorConfig(
            _kind(image_processor), json.dumps(settings), json.dumps(dict(processor.image_config))
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the image processor's settings are no JSON: {error}") from error


class Whole:
    """One manager's. Used on its event loop."""

    def __init__(self, processor: Any, owner: ArenaOwner, ranks: int, workers: int | None, share: float = 1.0) -> None:
        """``share``: of the requests. Raises ConfigError if this server's images cannot be processed in workers."""
        why = refusal(processor)
        if why:
            raise ConfigError(why)
        self._processor, self._owner, self._share = processor, owner, share
        self._original: Callable[..., Awaitable[Any]] = processor.process_mm_data_async
        self._verbatim: bool = (
            processor.uses_media_artifacts_without_cache
        )  # prompts given as ids are not tokenized anew
        self._placeholder: int = processor.mm_tokens.image_token_id
        made = config(processor)
        self._composer = ThreadPoolExecutor(1, "coatcheck-compose")  # tokenizers are not to be used by two at once
        self._tokenizer = copy.deepcopy(processor._tokenizer)
        self._intake = Intake(
            owner, made, default_workers(ranks) if workers is None else workers, partial(_measure, made)
        )

    def wrap(self, counted: Callable[[Taken], None]) -> None:
        """From now on the processor asks here first."""

        async def process_mm_data_async(
            image_data: Any, input_text: Any, request_obj: Any, *args: Any, **kwargs: Any
        ) -> Any:
            try:
                made = await self._process(image_data, input_text, request_obj)
            except NotTaken as error:
                counted(error.why)
            except Exception:  # ours, whatever it is
                log.exception("coatcheck could not process a request's images; SGLang does")
                counted("trouble")
            else:
                counted("whole")
                return made
            return await self._original(image_data, input_text, request_obj, *args, **kwargs)

        self._processor.process_mm_data_async = process_mm_data_async

    async def _process(self, image_data: Any, prompt: Any, request: Any) -> MultimodalProcessorOutput:
        """Raises NotTaken."""
        if not in_share(request.rid, self._share):
            raise NotTaken("not in the share")
        if not self._owner.carries:
            raise NotTaken("breaker open")
        images = self._images(image_data, request)
        self._check(prompt, len(images))
        if not self._intake.ready:
            raise NotTaken("starting")
        loop = asyncio.get_running_loop()
        encoded = await self._fetched(images)
        try:
            items, holding = await self._intake.prepare(encoded)
        except BadRequest as error:
            raise NotTaken("refused") from error
        except Overloaded as error:
            raise NotTaken("busy") from error
        except NoWorker as error:
            raise NotTaken("starting") from error
        except (ArenaError, Trouble, RequestError) as error:
            log.debug("a request's images are processed by SGLang: %s", error)
            raise NotTaken("no room" if isinstance(error, ArenaError) else "trouble") from error
        return await loop.run_in_executor(self._composer, self._compose, prompt, items, holding)

    async def _fetched(self, images: Sequence[Any]) -> list[bytes | str]:
        """Raises NotTaken."""
        loop, threads = asyncio.get_running_loop(), self._processor.io_executor
        waiting = {at: loop.run_in_executor(threads, one) for at, one in enumerate(images) if callable(one)}
        got = dict(zip(waiting, await asyncio.gather(*waiting.values(), return_exceptions=True), strict=True))
        if any(isinstance(one, BaseException) for one in got.values()):
            raise NotTaken("refused")  # SGLang tells the client why
        return [got.get(at, one) for at, one in enumerate(images)]

    def _images(self, image_data: Any, request: Any) -> list[Any]:
        """Bytes, or texts in base64, or functions that get bytes. Raises NotTaken."""
        if not image_data or request.video_data or request.audio_data:
            raise NotTaken("media")
        if getattr(request, "session_params", None) is not None:
            raise NotTaken("session")
        if getattr(request, "mm_content_hashes", None):  # SGLang compares them with the content
            raise NotTaken("settings")
        return [_encoded(one) for one in image_data]

    def _check(self, prompt: Any, images: int) -> None:
        """Raises NotTaken if it has not a placeholder for each image and no other. Not all is known of ids before."""
        tokens = self._processor.mm_tokens
        if isinstance(prompt, list):
            others = {tokens.video_token_id, tokens.audio_token_id} - {None}
            # SGLang does not look at a first id, whether it is a placeholder.
            fits = prompt.count(self._placeholder) == images and prompt[0] != self._placeholder
            if not fits or not others.isdisjoint(prompt):
                raise NotTaken("prompt")
        elif not isinstance(prompt, str) or not self._text_fits(prompt, images):
            raise NotTaken("prompt")

    def _text_fits(self, text: str, images: int) -> bool:
        # SGLang takes its fast path if the spans that it knows are as many as the images; transformers' processor then
        # replaces placeholder by placeholder. "<image>" is a span to the one and nothing to the other.
        tokens = self._processor.mm_tokens
        parts = re.split(tokens.get_combined_regex(), text)
        spans = [(part, kind) for part in parts if (kind := tokens.get_modality_of_token(part))]
        placeholder = tokens.convert_to_str(self._placeholder, self._processor._processor)
        return (
            len(spans) == text.count(placeholder) == images
            and all(kind == Modality.IMAGE for _, kind in spans)
            and not any("<image>" in part for part, _ in spans)
        )

    def _compose(self, prompt: Any, items: Sequence[Item], holding: ArenaHolding) -> MultimodalProcessorOutput:
        """On a thread. Raises NotTaken."""
        ids = prompt if isinstance(prompt, list) and self._verbatim else self._ids(prompt, len(items))
        expanded = expand(ids, self._placeholder, [item.count for item in items])
        if expanded is None:
            raise NotTaken("prompt")
        whole, spans = expanded
        grids: list[Grid] = [item.grid for item in items]
        places, delta = positions(len(whole), spans, grids, self._processor.spatial_merge_size)
        table = self._intake.table
        assert table is not None
        made = []
        for item, span in zip(items, spans, strict=True):
            assert isinstance(item.pixels, Handle)
            one = MultimodalDataItem(
                modality=Modality.IMAGE,
                feature=Stored(item.pixels, table, holding),
                offsets=[span],
                model_specific_data={"image_grid_thw": torch.tensor([item.grid], dtype=torch.long)},
            )
            one.set_hash(int.from_bytes(item.digest[:8], "big"))
            made.append(one)
        tokens = self._processor.mm_tokens
        return MultimodalProcessorOutput(
            input_ids=whole,
            mm_items=made,
            im_start_id=self._processor.vision_start_token_id,
            im_end_id=self._processor.vision_end_token_id,
            im_token_id=tokens.image_token_id,
            video_token_id=tokens.video_token_id,
            audio_token_id=tokens.audio_token_id,
            mrope_positions=torch.from_numpy(places),
            mrope_position_delta=torch.from_numpy(delta),
        )

    def _ids(self, prompt: str | list[int], images: int) -> list[int]:
        """The prompt's ids with one placeholder for each image, as SGLang tokenizes it. Raises NotTaken."""
        text = self._tokenizer.decode(prompt) if isinstance(prompt, list) else prompt
        if isinstance(prompt, list) and not self._text_fits(text, images):
            raise NotTaken("prompt")
        special = {}
        if self._processor._tokenizer_auto_adds_specials:  # as BaseMultimodalProcessor.process_mm_data
            bos = getattr(self._tokenizer, "bos_token", None)
            if bos and text.startswith(bos):
                special = {"add_special_tokens": False}
        if isinstance(prompt, list) and envs.SGLANG_MM_AVOID_RETOKENIZE.get():
            return prompt
        ids: list[int] = self._tokenizer(text, **special)["input_ids"]
        return ids


def _measure(made: ImageProcessorConfig) -> PixelTable:
    """On a thread of its own, once: transformers and Pillow are SGLang's by then."""
    from coatcheck.integrations.sglang import image_worker

    return image_worker.table(image_worker.processor(made), json.loads(made.options))


def _encoded(source: Any) -> bytes | str | Callable[[], bytes]:
    """What a worker reads: bytes, base64, a data URL; or what fetches that on a thread, as SGLang does.

    Raises NotTaken.
    """
    from sglang.srt.utils import ImageData
    from sglang.srt.utils.common import get_image_bytes

    if isinstance(source, ImageData):
        if source.preprocess_kwargs or source.max_long_side_pixel is not None or source.content_hash:
            raise NotTaken("settings")
        source = source.url
    if isinstance(source, bytes):
        return source
    if not isinstance(source, str):  # a Pillow image, a dictionary
        raise NotTaken("media")
    if source.startswith("data:"):
        if "," not in source:
            raise NotTaken("media")
        return source
    if source.startswith("file://"):
        return partial(get_image_bytes, unquote(urlparse(source).path))
    if source.startswith(("http://", "https://", "/")):
        return partial(get_image_bytes, source)
    return source
