"""Pictures decode, look like photographs in size, and no two are the same, whoever makes them."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from coatcheck.bench.serve.clips import Clips
from coatcheck.bench.serve.config import LEAST_SIDE
from coatcheck.bench.serve.pictures import BASES, BITS, Encoded, Pictures, numbers
from coatcheck.bench.support.clip import SECONDS


def pixels(picture: Encoded) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(picture.data)) as image:
        image.load()
        assert image.format == picture.kind.upper()
        return np.asarray(image.convert("RGB"))


def digests(pictures: Pictures, count: int) -> set[str]:
    return {sha256(pixels(pictures.next()).tobytes()).hexdigest() for _ in range(count)}


@pytest.mark.parametrize("kind", ["jpeg", "png"])
@pytest.mark.parametrize("size", [(224, 224), (320, 200)])
def test_no_two_have_the_same_pixels(kind: str, size: tuple[int, int]) -> None:
    one, other = Pictures(0, size, kind), Pictures(0, size, kind)  # the same seed: as another round or server
    assert len(digests(one, 100) | digests(other, 100)) == 200
    assert pixels(one.next()).shape == (size[1], size[0], 3)


@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_every_bit_of_the_number_changes_pixels(kind: str) -> None:
    pictures = Pictures(3, (LEAST_SIDE, LEAST_SIDE), kind)
    for base in pictures._bases:
        plain = pixels(base.numbered(0))
        for bit in range(BITS):
            assert (pixels(base.numbered(1 << bit)) != plain).any(), bit
        full = np.abs(pixels(base.numbered(2**BITS - 1)).astype(int) - plain)
        assert full.mean() < 6  # it still is the same picture to a model


def test_another_process_makes_others() -> None:
    code = (
        "import hashlib; from coatcheck.bench.serve.pictures import Pictures; p = Pictures(0, (112, 112)); "
        "print(*[hashlib.sha256(p.next().data).hexdigest() for _ in range(50)])"
    )
    made = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(2)]
    assert len({word for one in made for word in one.stdout.split()}) == 100


def test_numbers_go_on_when_the_counted_bits_are_used_up() -> None:
    drawn = numbers(40, 3)
    found = [next(drawn) for _ in range(64)]
    assert len(set(found)) == 64 and len({number >> 3 for number in found}) == 8


def test_a_photograph_in_size_and_cheap_to_ask_for() -> None:
    pictures = Pictures()
    made = [pictures.next() for _ in range(BASES)]
    assert all(60_000 <= len(picture.data) <= 300_000 for picture in made)
    [picture.url() for picture in made]  # what they share is made once
    start = time.process_time()
    for _ in range(200):
        pictures.next().url()
    assert (time.process_time() - start) / 200 < 0.001


@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_the_url_has_the_very_bytes(kind: str) -> None:
    from urllib.request import urlopen

    picture = Pictures(0, (150, 113), kind).next()
    with urlopen(b"".join(picture.url()).decode()) as opened:
        assert opened.read() == picture.data


def test_ones_own_come_in_turn_and_are_said_to_come_again(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "c.webp", "notes.txt"):
        (tmp_path / name).write_bytes(name.encode())
    pictures = Pictures(directory=tmp_path, first=1)
    assert [pictures.next().data for _ in range(4)] == [b"b.png", b"c.webp", b"a.jpg", b"b.png"]
    assert (pictures.taken, pictures.repeated) == (4, 2)
    assert pictures.next().url()[0] == b"data:image/webp;base64,"


@pytest.mark.timeout(60)  # four clips are encoded
def test_clips_differ_and_play() -> None:
    import av

    clips = Clips("made")
    start = time.process_time()
    made = [clips.next() for _ in range(20)]
    assert (time.process_time() - start) / 20 < 0.05
    assert len(set(made)) == 20 and clips.repeated == 0
    shown = set()
    for data in made[:3]:
        with av.open(io.BytesIO(data), "r") as opened:
            frames = [frame.to_ndarray(format="rgb24") for frame in opened.decode(video=0)]
        assert len(frames) == 24 * SECONDS
        shown.add(sha256(b"".join(frame.tobytes() for frame in frames[::12])).hexdigest())
    assert len(shown) == 3


def test_a_clip_of_ones_own_is_said_to_come_again(tmp_path: Path) -> None:
    (tmp_path / "a.webm").write_bytes(b"film")
    clips = Clips(str(tmp_path / "a.webm"))
    assert [clips.next(), clips.next(), clips.next()] == [b"film"] * 3
    assert (clips.kind, clips.repeated) == ("video/webm", 2)
