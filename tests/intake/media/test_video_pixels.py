"""A request with a video, from its body to ids, items and pixels: the reference's, bit for bit."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any, get_args

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from coatcheck.arena.handle import PixelForm
from coatcheck.engine.chat.handler import ChatHandler
from coatcheck.errors import BadRequest
from coatcheck.intake.records import prompt_tokens
from coatcheck.pixels import PixelTable, image_processor
from tests.support.clips import clip, noise
from tests.support.front_end import Grants, Made, chat_body, chat_handler, encoded, image_part, process

IMAGE, VIDEO = 510, 511


def video_part(data: bytes | str) -> dict[str, Any]:
    url = data if isinstance(data, str) else "data:video/mp4;base64," + base64.b64encode(data).decode()
    return {"type": "video_url", "video_url": {"url": url}}


def asked(made: ChatHandler, *parts: dict[str, Any] | str, form: Any = "float32") -> Made:
    return process(made, json.dumps(chat_body(*parts)).encode(), form)


def reference(data: bytes, indices: list[int], size: tuple[int, int]) -> NDArray[np.float32]:
    """(patches, 1176): Qwen2VLVideoProcessor written down anew: resize, normalize, and its ``patchify``."""
    mean = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
    std = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
    with av.open(io.BytesIO(data), "r") as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    made = []
    for index in indices:
        resized = Image.fromarray(frames[index]).resize(size, Image.Resampling.BICUBIC)
        made.append(np.asarray(resized).astype(np.float64) * (1 / 255))
    video = ((np.stack(made).astype(np.float32) - mean) / std).transpose(0, 3, 1, 2)
    h, w = size[1] // 14, size[0] // 14
    tiles = video.reshape(len(indices) // 2, 2, 3, h // 2, 2, 14, w // 2, 2, 14)
    return tiles.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(-1, 3 * 2 * 14 * 14)


@pytest.mark.parametrize(
    ("size", "frames", "resized", "indices"),
    [
        ((480, 360), 48, (476, 364), [0, 12, 24, 36]),  # within the limits: rounded to whole pairs of patches
        ((64, 48), 24, (392, 280), [0, 6, 12, 18]),  # too small: made as large as 128 tokens
        ((33, 17), 30, (448, 252), [0, 7, 15, 22]),
        ((1280, 720), 6, (1008, 560), [0, 1, 3, 4]),  # too large: 768 tokens
    ],
)
def test_pixels_are_the_reference_s(
    model_dir: Path, size: tuple[int, int], frames: int, resized: tuple[int, int], indices: list[int]
) -> None:
    data = clip(frames, size, "webm" if size[0] % 2 else "mp4", picture=noise(*size))
    made = chat_handler(model_dir)
    processed = asked(made, video_part(data), "What happens?")
    (pixels,) = processed.pixels
    (item,) = processed.items
    t, h, w = item.grid
    assert (t, h * 14, w * 14) == (2, resized[1], resized[0])
    np.testing.assert_array_equal(pixels, reference(data, indices, resized))
    assert item.count == len(pixels) // 4
    assert processed.ids[item.start] == VIDEO
    assert processed.ids.count(VIDEO) == 1
    assert item.seconds == pytest.approx(2 / (4 / frames * 24))
    assert len(item.digest) == 32


def test_compact_pixels_are_the_same_ones(model_dir: Path) -> None:
    made = chat_handler(model_dir)
    data = clip(30, (96, 64), picture=noise(96, 64))
    (wide,), (compact,) = (asked(made, video_part(data), form=form).pixels for form in ("float32", "uint8"))
    assert compact.shape == wide.shape
    table = PixelTable.of(image_processor(model_dir))
    widened = table.widen(torch.from_numpy(compact.copy()))
    np.testing.assert_array_equal(widened.numpy(), wide)


def test_images_and_videos_in_one_request(model_dir: Path) -> None:
    picture = Image.fromarray(noise(200, 100)(0))
    data = clip(24, (96, 64))
    made = chat_handler(model_dir, max_videos=2)
    parts = (video_part(data), "and", image_part(encoded(picture)), "and", video_part(clip(48, (64, 96))))
    processed = asked(made, *parts)
    pixels = processed.pixels
    assert [item.seconds is None for item in processed.items] == [False, True, False]
    more = 0  # tokens that the placeholders before stand for, beside themselves
    for item, token, values in zip(processed.items, (VIDEO, IMAGE, VIDEO), pixels, strict=True):
        assert processed.ids[item.start - more] == token
        more += item.count - 1
        assert len(values) == item.count * 4
    assert prompt_tokens(processed.ids, processed.items) == len(processed.ids) + more
    np.testing.assert_array_equal(pixels[0], asked(made, video_part(data)).pixels[0])
    np.testing.assert_array_equal(pixels[1], asked(made, image_part(encoded(picture))).pixels[0])


def test_the_room_asked_for_is_what_the_pixels_take(model_dir: Path) -> None:
    body = json.dumps(chat_body(video_part(clip(48, (161, 121), "webm")))).encode()
    for form in get_args(PixelForm):
        pool = Grants()
        made = process(chat_handler(model_dir), body, form, pool)
        assert [want.nbytes for want in pool.wants] == [pixels.nbytes for pixels in made.pixels]


def test_identity_covers_the_bytes_and_how_they_are_sampled(model_dir: Path) -> None:
    def digest(data: bytes, **options: Any) -> bytes:
        return asked(chat_handler(model_dir, **options), video_part(data)).items[0].digest

    one, other = clip(48), clip(47)
    assert digest(one) == digest(one, max_videos=3)
    assert len({digest(one), digest(other), digest(one, max_video_frames=2)}) == 3


def test_typed_placeholders_stay_text(model_dir: Path) -> None:
    processed = asked(chat_handler(model_dir), "<|video_pad|><|vision_start|><|image_pad|>", video_part(clip(24)))
    assert processed.ids.count(VIDEO) == 1
    assert IMAGE not in processed.ids


def test_what_exceeds_the_context_is_refused_before_it_is_decoded(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = clip(240, (480, 360))  # 2210 tokens
    processed = asked(chat_handler(model_dir, context=2300), video_part(data))
    assert 2200 < prompt_tokens(processed.ids, processed.items) < 2300
    monkeypatch.setattr("coatcheck.intake.media.videos.Video.frames", None)
    with pytest.raises(BadRequest, match="images and videos included") as caught:
        asked(chat_handler(model_dir, context=2200), video_part(data))
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("data:video/mp4,abc", "invalid_video_url"),
        ("data:video/mp4;base64,???", "invalid_base64"),
        ("file:///etc/passwd", "invalid_video_url"),
        ("https://example.org/a.mp4", "remote_videos_disabled"),
        ("data:video/mp4;base64,AAAA", "invalid_video"),
        ("data:video/mp4;base64,", "invalid_video"),
    ],
)
def test_urls_that_are_refused(model_dir: Path, url: str, code: str) -> None:
    with pytest.raises(BadRequest) as caught:
        asked(chat_handler(model_dir), video_part(url))
    assert (caught.value.code, caught.value.param) == (code, "messages[0].content[0].video_url.url")


def test_an_image_is_no_video_and_a_video_no_image(model_dir: Path) -> None:
    made = chat_handler(model_dir)
    with pytest.raises(BadRequest, match="supported format"):
        asked(made, video_part(encoded(Image.new("RGB", (28, 28)))))
    with pytest.raises(BadRequest, match="not an image"):
        asked(made, image_part(clip(24)))


def test_videos_are_counted_apart_from_images(model_dir: Path) -> None:
    picture, film = image_part(encoded(Image.new("RGB", (28, 28)))), video_part(clip(24))
    made = chat_handler(model_dir, max_images=2, max_videos=1)
    assert len(asked(made, picture, film, picture).items) == 3
    with pytest.raises(BadRequest) as caught:
        asked(made, film, picture, film)
    assert (caught.value.code, caught.value.param) == ("too_many_videos", "messages[0].content[2].video_url.url")


def test_videos_stand_in_user_messages_only(model_dir: Path) -> None:
    body = chat_body("Hi")
    body["messages"].insert(0, {"role": "system", "content": [video_part(clip(24))]})
    with pytest.raises(BadRequest) as caught:
        process(chat_handler(model_dir), json.dumps(body).encode())
    assert caught.value.param == "messages[0].content[0]"
