"""The seeded workload."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from coatcheck.bench import clip
from coatcheck.bench.config import BenchConfig
from coatcheck.bench.http import _options
from coatcheck.bench.workload import TensorWorkload, fresh, http_bodies
from coatcheck.engine.http.config import FrontendConfig
from coatcheck.engine.model.config import DEFAULT_MODEL, EngineConfig
from coatcheck.engine.strategies.materialize import Materialize
from coatcheck.errors import ConfigError
from coatcheck.intake.media import videos
from coatcheck.pixels import PixelTable, image_processor
from tests.support import clips
from tests.support.front_end import chat_handler, process


def config(**options: Any) -> BenchConfig:
    return BenchConfig(("dict-inline",), **{"image": "112x84", "requests": 5, "output_tokens": 3, **options})


def positions(length: int, items: object) -> tuple[NDArray[np.int64], int]:
    return np.zeros((3, length), dtype=np.int64), 0


materialize = Materialize(positions, 510, 511, 2, 1176, table=PixelTable.of(image_processor(DEFAULT_MODEL)))


def test_requests_are_what_ranks_accept_and_all_different() -> None:
    for images in (0, 1, 3):
        workload = TensorWorkload(config(images_per_request=images))
        made = [materialize(*workload.request(index, "a", "dict-inline", False)) for index in range(5)]
        assert all(len(inputs.items) == images for inputs in made)
        assert len({inputs.digest() for inputs in made}) == 5
        sizes = {sum(item.pixels.nbytes for item in inputs.items) for inputs in made}
        assert sizes == {workload.payload_bytes("dict-inline")}


def test_compact_and_wide_payloads_are_the_same_pixels() -> None:
    compact, wide = (TensorWorkload(config(images_per_request=2, pixels=form)) for form in ("uint8", "float32"))
    for workload in (compact, wide):
        assert workload.form("dict-inline") == "float32"
    for index in range(5):
        digests = {
            materialize(*workload.request(index, "a", strategy, False)).digest()
            for workload in (compact, wide)
            for strategy in ("dict-inline", "handle-inline")
        }
        assert len(digests) == 1
    assert compact.payload_bytes("handle-inline") * 8 == wide.payload_bytes("handle-inline")
    assert wide.payload_bytes("handle-inline") == compact.payload_bytes("object-inline")


def test_the_seed_decides() -> None:
    def first(seed: int) -> bytes:
        return bytes(TensorWorkload(config(seed=seed)).request(0, "a", "dict-inline", False)[1][0])

    assert first(1) == first(1) != first(2)


def test_many_requests_take_the_memory_of_one() -> None:
    workload = TensorWorkload(config(requests=1000))
    frames = [workload.request(index, "a", "dict-inline", False)[1][0] for index in range(1000)]
    assert len({id(memoryview(frame).obj) for frame in frames}) == 1


@pytest.mark.parametrize("image", ["112x84", "448x448", "2000x1000", "28x28"])
def test_images_are_cut_as_the_model_s_processor_cuts_them(image: str) -> None:
    asked = config(image=image, requests=1)
    (body,) = http_bodies(asked, b"")
    handler = chat_handler(DEFAULT_MODEL, model_name="bench")
    (item,) = process(handler, body).items
    expected = TensorWorkload(asked).prompt("float32")[1][0]
    assert (item.pixels.shape, item.grid, item.count) == (expected.pixels.shape, expected.grid, expected.count)


def test_http_bodies_have_pictures_of_their_own() -> None:
    bodies = http_bodies(config(images_per_request=2), b"")
    assert bodies == http_bodies(config(images_per_request=2), b"")
    urls = [part["image_url"]["url"] for body in bodies for part in json.loads(body)["messages"][0]["content"][:2]]
    assert len(set(urls)) == 10
    picture = Image.open(io.BytesIO(base64.b64decode(urls[0].split(",")[1])))
    assert picture.size == (112, 84)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> BenchConfig:
    path = tmp_path_factory.mktemp("clip") / "short.webm"
    path.write_bytes(clips.clip(48, (96, 64), "webm", picture=clips.noise(96, 64)))
    return config(video=str(path), images_per_request=0)


@pytest.mark.parametrize("media", ["image", "mp4", "webm"])
def test_a_number_makes_new_content_of_the_same_pixels(tmp_path: Path, media: str) -> None:
    asked, video = config(requests=3, images_per_request=2), b""
    if media != "image":
        video = clips.clip(24, (96, 64), media, picture=clips.noise(96, 64))
        (tmp_path / "film").write_bytes(video)
        asked = config(requests=3, video=str(tmp_path / "film"), images_per_request=0)
    handler = chat_handler(DEFAULT_MODEL, model_name="bench")
    for body in http_bodies(asked, video):  # images of several lengths
        digests, payloads = set(), set()
        for number in (0, 1, 2**40):
            made = process(handler, fresh(body, number), "uint8")
            digests |= {item.digest for item in made.items}
            payloads.add(tuple(pixels.tobytes() for pixels in made.pixels))
        assert len(digests) == 3 * len(made.items)
        assert len(payloads) == 1


def test_a_video_is_the_front_end_s_own(made: BenchConfig) -> None:
    workload = TensorWorkload(made)
    bodies = [fresh(body, number) for number, body in enumerate(http_bodies(made, workload.clip))]
    handler = chat_handler(DEFAULT_MODEL, model_name="bench")
    digests = set()
    for strategy in ("handle-inline", "dict-inline"):
        form = workload.form(strategy)
        arrived, (payload,) = workload.request(0, "a", strategy, False)
        (item,) = arrived.items
        for body in bodies:
            done = process(handler, body, form)
            (got,) = done.items
            digests.add(got.digest)
            assert (got.pixels.shape, got.grid, got.count) == (item.pixels.shape, item.grid, item.count)
            assert got.seconds == item.seconds
            assert done.pixels[0].tobytes() == bytes(payload)
        assert len(payload) == workload.payload_bytes(strategy)
    assert len(digests) == len(bodies), "equal videos would be processed once only"


def test_requests_with_a_video_are_what_ranks_accept_and_all_different(made: BenchConfig) -> None:
    workload = TensorWorkload(made)
    inputs = [materialize(*workload.request(index, "a", "handle-inline", False)) for index in range(5)]
    assert len({one.digest() for one in inputs}) == 5
    assert [one.digest() for one in inputs] == [
        materialize(*workload.request(index, "a", "object-inline", False)).digest() for index in range(5)
    ]


@pytest.mark.timeout(60)
def test_the_clip_that_the_benchmark_makes() -> None:
    data = clip.make()
    assert 1.9e6 < len(data) < 2.1e6
    video = videos.probe(data, FrontendConfig(model_dir=DEFAULT_MODEL, model_name="bench"), "p")
    assert (len(video.indices), video.size, video.seconds) == (20, (480, 360), 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": "448"}, "--image: '448' is not WIDTHxHEIGHT"),
        ({"image": "0x448"}, "--image"),
        ({"image": "8000x20"}, "--image: 8000x20: .*aspect ratio"),
        ({"requests": 0}, "--requests: 0 is less than 1"),
        ({"rounds": 0}, "--rounds"),
        ({"images_per_request": -1}, "--images-per-request"),
        ({"video": "made"}, "--video: requests have one video and no image"),
        ({"video": "/no/clip.mp4", "images_per_request": 0}, "--video: there is no file /no/clip.mp4"),
        ({"video": __file__, "images_per_request": 0}, "--video: This is not a video"),
        ({"input": "file"}, "--input: 'file' is not one of http, tensors"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TensorWorkload(config(**options))


def test_the_server_keeps_embeddings_only_as_told() -> None:
    for mebi in (0, 3):
        options = _options(config(engine=EngineConfig(embedding_cache_bytes=mebi << 20)), 1, Path("trace"), False)
        assert options[options.index("--embedding-cache-mib") + 1] == str(mebi)
