"""Videos: which frames are taken, how they come out, and what is refused before or while it is decoded."""

from __future__ import annotations

import io
import math
import resource
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coatcheck.errors import BadRequest
from coatcheck.intake.limits import MediaLimits
from coatcheck.intake.media.videos import Video, pixel_limits, probe, sample
from tests.support.clips import RATE, clip, noise, sound

P = "messages[0].content[0].video_url.url"


def probed(data: bytes, **options: Any) -> Video:
    return probe(data, MediaLimits(**options), P)


def greys(video: Video) -> list[int]:
    """Which frame each one taken is, by its grey."""
    return [round(float(np.asarray(frame).mean()) / 4) for frame in video.frames()]


def refused(data: bytes, code: str = "invalid_video", **options: Any) -> str:
    with pytest.raises(BadRequest) as caught:
        list(probed(data, **options).frames())
    assert (caught.value.code, caught.value.param) == (code, P)
    return str(caught.value)


# ------------------------------------------------------------------- sampling


@pytest.mark.parametrize(
    ("total", "rate", "most", "expected"),
    [
        (240, 24.0, 768, [n * 12 for n in range(20)]),  # 10 s: two frames a second
        (48, 24.0, 768, [0, 12, 24, 36]),
        (24, 24.0, 768, [0, 6, 12, 18]),  # 1 s: four at least
        (5, 24.0, 768, [0, 1, 2, 3]),
        (3, 24.0, 768, [0, 1]),  # not more than there are, an even number
        (10, 1.0, 768, list(range(10))),
        (3000, 30.0, 8, [n * 375 for n in range(8)]),
        (115, 15.0, 768, [math.floor(n * 115 / 14) for n in range(14)]),  # where torch.arange makes one more
    ],
)
def test_frames_are_taken_uniformly(total: int, rate: float, most: int, expected: list[int]) -> None:
    assert list(sample(total, rate, most)) == expected


def test_the_pixels_of_all_frames_together_are_bounded() -> None:
    assert pixel_limits(2) == pixel_limits(100) == (128 * 784, 768 * 784)
    assert pixel_limits(768) == (128 * 784, 128_000 * 784 * 9 // 10 * 2 // 768)
    for frames in range(2, 769, 2):
        assert pixel_limits(frames)[1] * frames // 2 <= 128_000 * 784 * 0.9


@pytest.mark.parametrize("container", ["mp4", "webm", "matroska"])
def test_the_frames_taken_are_the_right_ones(container: str) -> None:
    video = probed(clip(60, container=container))
    assert list(video.indices) == list(sample(60, RATE, 768)) == [0, 15, 30, 45]
    assert greys(video) == [0, 15, 30, 45]
    assert video.size == (64, 48)
    assert video.seconds == pytest.approx(2 / (4 / 60 * RATE))


@pytest.mark.parametrize(
    ("container", "codec", "options"),
    [
        ("mp4", "libx265", {"x265-params": "log-level=none"}),
        ("webm", "libvpx", None),
        ("mp4", "libvpx-vp9", None),
    ],
)
def test_other_codecs(container: str, codec: str, options: dict[str, str] | None) -> None:
    assert greys(probed(clip(48, (96, 64), container, codec, options=options))) == [0, 12, 24, 36]


def test_frames_that_are_never_shown_do_not_count() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="webm") as made:
        stream: Any = made.add_stream("libvpx", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for n in range(48):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), n // 8 * 40, np.uint8), format="rgb24")
            frame.pts, frame.time_base = n, Fraction(1, RATE)
            for packet in stream.encode(frame):
                if n % 3 == 2:  # once more, before it is shown
                    data = bytearray(bytes(packet))
                    data[0] &= ~0x10  # show_frame, RFC 6386
                    hidden = av.Packet(bytes(data))
                    hidden.stream, hidden.pts, hidden.dts, hidden.time_base = stream, n, n, Fraction(1, RATE)
                    made.mux(hidden)
                made.mux(packet)
        made.mux(stream.encode())
    with av.open(io.BytesIO(buffer.getvalue()), "r", format="matroska") as container:
        assert sum(packet.size > 0 for packet in container.demux(video=0)) == 64
    video = probed(buffer.getvalue())
    assert list(video.indices) == [0, 12, 24, 36]
    assert len(list(video.frames())) == 4


# ------------------------------------------------------------------- odd, but right


def test_a_variable_rate_counts_frames_not_time() -> None:
    """As the reference does: every frame has the same chance, whatever it lasts."""
    times = [*(n / 24 for n in range(36)), *(1.5 + n / 2 for n in range(12))]  # motion, then stills: 7.5 s
    video = probed(clip(48, times=times))
    assert list(video.indices) == [n * 48 // 14 for n in range(14)]
    assert video.seconds == pytest.approx(2 * 7.5 / 14, rel=0.07)


@pytest.mark.parametrize(("rotation", "corner"), [(0, "left"), (90, "bottom"), (180, "right"), (-90, "top")])
def test_rotation_is_applied(rotation: int, corner: str) -> None:
    def half(n: int) -> Any:
        picture = np.zeros((64, 96, 3), np.uint8)
        picture[:, :48] = 255  # the left half is white; turned counterclockwise by a quarter it is at the bottom
        return picture

    video = probed(clip(24, (96, 64), picture=half, rotation=rotation))
    frame = np.asarray(next(video.frames()))
    halves = {
        "left": frame[:, : frame.shape[1] // 2],
        "right": frame[:, frame.shape[1] // 2 :],
        "top": frame[: frame.shape[0] // 2],
        "bottom": frame[frame.shape[0] // 2 :],
    }
    assert max(halves, key=lambda name: float(halves[name].mean())) == corner
    assert video.size == ((96, 64) if rotation in (0, 180) else (64, 96))


@pytest.mark.parametrize("size", [(33, 17), (161, 121), (16, 200)])
def test_odd_sizes(size: tuple[int, int]) -> None:
    video = probed(clip(24, size, "webm", pixels="yuv420p"))
    assert video.size == size
    assert len(list(video.frames())) == 4


def test_a_video_beside_sound_is_taken() -> None:
    # The sound's codec is on no list, and nobody decodes it.
    assert greys(probed(with_sound())) == [0, 12, 24, 36]


def with_sound() -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as made:
        speech: Any = made.add_stream("aac", rate=48_000, layout="mono")
        video: Any = made.add_stream("libx264", rate=RATE)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        for n in range(48):
            sample = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            sample.sample_rate, sample.pts = 48_000, n * 1024
            made.mux(speech.encode(sample))
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), n * 4, np.uint8), format="rgb24")
            frame.pts, frame.time_base = n, Fraction(1, RATE)
            made.mux(video.encode(frame))
        made.mux(speech.encode())
        made.mux(video.encode())
    return buffer.getvalue()


def lie(data: bytes, field: bytes, at: int, value: int) -> bytes:
    """A 32-bit number of an MP4 box changed."""
    start = data.index(field) + at
    return data[:start] + struct.pack(">I", value) + data[start + 4 :]


@pytest.mark.parametrize("duration", [1, 10**9])
def test_a_header_that_lies_about_the_length_is_not_believed(duration: int) -> None:
    data = clip(48)
    for box, at in ((b"mvhd", 20), (b"mdhd", 20), (b"tkhd", 24)):
        data = lie(data, box, at, duration)
    assert greys(probed(data)) == [0, 12, 24, 36]


# ------------------------------------------------------------------- refused


@pytest.mark.parametrize("entries", [20_000_000, 2**32 - 1])
def test_an_index_that_asks_for_gigabytes_is_refused(entries: int) -> None:
    data = clip(48)
    data = lie(lie(data, b"stsz", 8, 1), b"stsz", 12, entries)  # samples of one byte each, so many
    data = lie(lie(data, b"stsc", 16, entries), b"stts", 12, entries)
    resident, highest = psutil.Process().memory_info().rss, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    before = resource.getrlimit(resource.RLIMIT_DATA)
    refused(data)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert peak <= max(highest, resident + (600 << 20))
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


@pytest.mark.parametrize(
    "data", [b"", b"abc", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0AVI LIST", b"#EXTM3U\nfile:///etc/passwd"]
)
def test_other_formats(data: bytes) -> None:
    assert "supported format" in refused(data)


@pytest.mark.parametrize(
    "data", [b"\x1a\x45\xdf\xa3" + b"abc" * 99, b"\0\0\0\x18ftypmp42" + bytes(500), clip(24)[:2000]]
)
def test_damaged_headers(data: bytes) -> None:
    assert "damaged or truncated" in refused(data)


def test_no_video_stream() -> None:
    assert "no video stream" in refused(sound())
    assert "no video stream" in refused(sound("webm", "libopus"))


def test_another_codec() -> None:
    assert "codec" in refused(clip(24, codec="mpeg4"))


@pytest.mark.parametrize("frames", [0, 1])
def test_too_few_frames(frames: int) -> None:
    refused(clip(frames))


def test_longer_than_allowed_is_refused_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = clip(72)  # 3 s
    assert probed(data, max_video_seconds=3.1)
    monkeypatch.setattr("coatcheck.intake.media.videos._decoded", None)
    refused(data, "video_too_long", max_video_seconds=2.9)


def test_too_many_frames_in_no_time() -> None:
    refused(clip(500, times=(n / 1000 for n in range(500))), "video_too_long", max_video_seconds=1.0)


def test_a_long_video_is_sampled_more_thinly() -> None:
    assert greys(probed(clip(48, times=(n / 4 for n in range(48))), max_video_frames=6)) == [0, 8, 16, 24, 32, 40]


def test_large_frames_are_refused_from_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    data = clip(24, (64, 48))
    assert probed(data, max_pixels=64 * 48)
    monkeypatch.setattr("coatcheck.intake.media.videos._decoded", None)
    assert "64 x 48" in refused(data, "video_too_large", max_pixels=64 * 48 - 1)


def test_a_header_that_lies_about_the_size_does_not_help() -> None:
    # The container says 16 x 16, the stream itself 256 x 256.
    data = clip(24, (256, 256), picture=noise(256, 256))
    start = data.index(b"avc1") + 28
    data = data[:start] + struct.pack(">HH", 16, 16) + data[start + 4 :]
    refused(data, "video_too_large", max_pixels=100 * 100)


def test_frames_that_grow_are_refused_by_the_decoder() -> None:
    """Before it takes memory for one: else our own check would name their size."""
    assert "damaged" in refused(growing(256), max_pixels=64 * 48)


def test_sides_that_differ_too_much() -> None:
    refused(clip(24, (2 * 3250, 32)), "invalid_video_aspect")


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9, 0.999])
def test_a_truncated_mp4(share: float, tmp_path: Path) -> None:
    data = front_loaded(tmp_path / "a.mp4")
    assert len(list(probed(data).frames())) == 4
    assert "damaged or truncated" in refused(data[: int(len(data) * share)])


def front_loaded(path: Path) -> bytes:
    """An MP4 whose index comes first."""
    plain = path.with_name("plain.mp4")
    plain.write_bytes(clip(48, picture=noise(64, 48)))
    with av.open(plain) as source, av.open(path, "w", options={"movflags": "faststart"}) as made:
        stream = made.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                made.mux(packet)
    return path.read_bytes()


def test_a_truncated_webm_is_taken_as_far_as_it_goes() -> None:
    # A recording under way looks just like it.
    data = clip(48, container="webm", picture=noise(64, 48))
    video = probed(data[: len(data) * 3 // 4])
    assert 30 <= max(video.indices) + 12 <= 40
    assert len(list(video.frames())) == 4


def test_damage_in_the_middle() -> None:
    data = bytearray(clip(48, picture=noise(64, 48)))
    at = data.index(b"mdat") + 5000
    data[at : at + 3000] = np.random.default_rng(1).bytes(3000)
    assert "damaged" in refused(bytes(data))


def test_frames_that_change_their_size() -> None:
    assert "size" in refused(growing(96))


def growing(to: int) -> bytes:
    """One second of frames 64 wide, one of others; VP9 says in every key frame how large it is."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="webm") as made:
        first: Any = made.add_stream("libvpx-vp9", rate=RATE)
        other: Any = av.CodecContext.create("libvpx-vp9", "w")
        for at, (encoder, width) in enumerate(((first, 64), (other, to))):
            encoder.width, encoder.height, encoder.pix_fmt = width, 48, "yuv420p"
            encoder.time_base = Fraction(1, RATE)
            packets = []
            for n in range(24):
                frame = av.VideoFrame.from_ndarray(noise(width, 48)(n), format="rgb24")
                frame.pts, frame.time_base = at * 24 + n, Fraction(1, RATE)
                packets += encoder.encode(frame)
            for packet in packets + encoder.encode():
                packet.stream = first
                made.mux(packet)
    return buffer.getvalue()


def test_any_byte_changed_is_a_video_or_a_refusal() -> None:
    whole = clip(24, picture=noise(64, 48))
    random = np.random.default_rng(0)
    for _ in range(150):
        data = bytearray(whole)
        for at in random.integers(0, len(data), 3):
            data[at] = random.integers(0, 256)
        try:
            video = probed(bytes(data), max_pixels=10_000)
            assert len(list(video.frames())) == len(video.indices)
        except BadRequest as error:
            assert error.param == P


@settings(deadline=None)
@given(total=st.integers(2, 40_000), rate=st.floats(0.5, 240), most=st.integers(2, 768))
def test_every_sample_is_an_even_number_of_frames_that_are_there(total: int, rate: float, most: int) -> None:
    indices = sample(total, rate, most)
    assert len(indices) % 2 == 0
    assert 2 <= len(indices) <= most
    assert list(indices) == sorted(set(indices))
    assert indices[-1] < total
