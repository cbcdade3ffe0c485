"""Encoded video -> sampled frames, in two steps: what the container tells, and the frames.

Which frames are taken, and how large they are made, is the reference's choice: ``Qwen2VLVideoProcessor`` of
transformers with ``do_sample_frames`` and ``cap_pixels_per_frame``, fed by its PyAV reader. Its numbers are those of
qwen-vl-utils (``vision_process.py``), the reference implementation of Qwen2.5-VL.

A video's length and number of frames are counted from its packets: headers may lie, and WebM has neither. Memory that
libav takes is bounded by the kernel, since 3 kB of MP4 can ask for an index of gigabytes.
"""

from __future__ import annotations

import io
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import torch
from av.container import InputContainer
from av.video.stream import VideoStream
from PIL import Image

from coatcheck.errors import BadRequest
from coatcheck.intake.limits import MediaLimits, check_size

TEMPORAL_PATCH = 2  # frames; FRAME_FACTOR of qwen-vl-utils, and temporal_patch_size of every Qwen2.5-VL
FPS = 2.0  # frames sampled a second
MIN_FRAMES = 4
MIN_PIXELS = 128 * 28 * 28  # of a frame: VIDEO_MIN_PIXELS, size["shortest_edge"] in transformers
MAX_PIXELS = 768 * 28 * 28  # of a frame: VIDEO_MAX_PIXELS, size["longest_edge"]
TOTAL_PIXELS = int(128_000 * 28 * 28 * 0.9)  # of all temporal patches together: VIDEO_TOTAL_PIXELS, max_video_tokens

MAX_RATE = 240  # frames a second that a video may have; faster than cameras for slow motion
RATE_SLACK = 0.02  # by which a header's rate may differ from the packets': WebM counts in whole milliseconds

CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "libdav1d")  # as libav names decoders; others are attack surface
_OPTIONS = {"codec_whitelist": ",".join(CODECS), "protocol_whitelist": "none"}  # no file, no URL, whatever it refers to
CONTAINER_BYTES = 256 << 20  # for an index: a video of 10 minutes needs 15 MB at 240 frames a second
PIXEL_BYTES = 128  # for a decoder, by pixel of a frame: 17 frames of H.264, twice that in the worst format
_EBML = b"\x1a\x45\xdf\xa3"  # begins every WebM and Matroska file
_TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}


@dataclass(frozen=True)
class Video:
    """What is known of a video before its frames are decoded."""

    data: bytes
    indices: tuple[int, ...]  # of the frames sampled, ascending; a multiple of TEMPORAL_PATCH
    size: tuple[int, int]  # (width, height) of its frames, upright
    seconds: float  # from one temporal patch to the next
    max_pixels: int
    param: str  # where it stands in the request

    @property
    def limits(self) -> tuple[int, int]:
        """Least and most pixels to be made of a frame."""
        return pixel_limits(len(self.indices))

    def frames(self) -> Iterator[Image.Image]:
        """The sampled frames in order, RGB and upright, not resized.

        Raises BadRequest if the video is damaged.
        """
        wanted = iter(self.indices)
        index = next(wanted)
        for at, frame in enumerate(_decoded(self.data, self.max_pixels, self.param)):
            if at < index:
                continue
            image = _upright(frame)
            if image.size != self.size:
                raise _invalid("its frames change their size", self.param)
            yield image
            index = next(wanted, -1)
            if index < 0:
                return
        raise _invalid("it has fewer frames than packets", self.param)


def probe(data: bytes, limits: MediaLimits, param: str) -> Video:
    """Reads headers and packets, and decodes one frame. Raises BadRequest for what is over a limit or no video."""
    with _opened(data, param) as (container, stream):
        check_size("video", (stream.width, stream.height), limits.max_pixels, param)
        total, rate = _count(container, stream, limits.max_video_seconds, param)
    if total < TEMPORAL_PATCH:
        raise _invalid(f"it has {total} frames; at least {TEMPORAL_PATCH} are needed", param)
    first = next(_decoded(data, limits.max_pixels, param), None)
    if first is None:
        raise _invalid("it has no frame", param)
    size = _upright(first).size  # rotation is known from frames only
    indices = sample(total, rate, limits.max_video_frames)
    seconds = TEMPORAL_PATCH / (len(indices) / total * rate)
    return Video(data, indices, size, seconds, limits.max_pixels, param)


def how(limits: MediaLimits) -> str:
    """All that the same bytes' frames depend on."""
    libraries = " ".join(f"{name} {version}" for name, version in sorted(av.library_versions.items()))
    return f"{libraries} {FPS} {MIN_FRAMES} {MIN_PIXELS} {MAX_PIXELS} {TOTAL_PIXELS} {limits.max_video_frames}"


def sample(total: int, rate: float, max_frames: int) -> tuple[int, ...]:
    """Indices of the frames taken of ``total`` at ``rate`` a second: ``sample_frames`` of the reference."""
    most = min(max_frames, total) // TEMPORAL_PATCH * TEMPORAL_PATCH
    count = int(min(max(total / rate * FPS, MIN_FRAMES), most) // TEMPORAL_PATCH * TEMPORAL_PATCH)
    indices: list[int] = torch.arange(0, total, total / count).int().tolist()
    return tuple(indices[:count])  # by rounding, one more comes now and then, ``total`` itself: there is no such frame


def pixel_limits(frames: int) -> tuple[int, int]:
    """Least and most pixels of a frame where so many are sampled (``resize`` of the reference): an even share each."""
    share = TOTAL_PIXELS * TEMPORAL_PATCH // frames
    return MIN_PIXELS, max(min(MAX_PIXELS, share), int(MIN_PIXELS * 1.05))


@contextmanager
def _opened(data: bytes, param: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its first video stream. What goes wrong inside is the client's fault: BadRequest."""
    if data.startswith(_EBML):
        demuxer = "matroska"
    elif data[4:8] == b"ftyp":
        demuxer = "mp4"
    else:
        raise BadRequest("This is not a video of a supported format (MP4, WebM)", param=param, code="invalid_video")
    try:
        with _bounded(CONTAINER_BYTES):
            container = av.open(io.BytesIO(data), "r", format=demuxer, options=_OPTIONS, metadata_errors="replace")
        with container:
            if not container.streams.video:
                raise _invalid("it has no video stream", param)
            stream = container.streams.video[0]
            if stream.codec_context is None or stream.codec_context.name not in CODECS:
                raise _invalid("its codec is not one of H.264, H.265, VP8, VP9, AV1", param)
            yield container, stream
    except BadRequest:
        raise
    except Exception:  # libav's messages name its internals
        raise _invalid("it is damaged or truncated", param) from None


@contextmanager
def _bounded(nbytes: int) -> Iterator[None]:
    """Within, this process gets at most so much more memory; beyond, allocating fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    pages = int(Path("/proc/self/statm").read_text().split()[5])  # data and stack: what RLIMIT_DATA counts, and more
    limit = pages * resource.getpagesize() + nbytes
    limits = [limit, *(given for given in (soft, hard) if given != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _count(container: InputContainer, stream: VideoStream, max_seconds: float, param: str) -> tuple[int, float]:
    """Frames, and how many a second on average. Nothing is decoded."""
    total = 0
    first = last = end = None
    packets = container.demux(stream)
    while True:
        with _bounded(CONTAINER_BYTES):
            packet = next(packets, None)
        if packet is None:
            break
        if packet.is_corrupt:
            raise _invalid("it is damaged or truncated", param)
        if packet.size == 0 or packet.is_discard or _hidden(stream, packet):
            continue
        total += 1
        at = packet.pts if packet.pts is not None else packet.dts
        if at is not None and packet.time_base is not None:
            start = float(at * packet.time_base)
            first = start if first is None else min(first, start)
            if last is None or start >= last:
                last, end = start, start + float((packet.duration or 0) * packet.time_base)
        length = end - first if end is not None and first is not None else 0.0
        if length > max_seconds or total > max_seconds * MAX_RATE:
            raise BadRequest(
                f"The video is longer than {max_seconds:g} s or has more than {MAX_RATE} frames a second",
                param=param,
                code="video_too_long",
            )
    said = float(stream.average_rate or 0)
    if first is None or last is None or end is None or last == first:
        if not 0 < said <= MAX_RATE:
            raise _invalid("it does not say when its frames are shown", param)
        return total, said
    length = end - first if end > last else (last - first) * total / (total - 1)
    counted = total / length
    return total, said if abs(said - counted) <= RATE_SLACK * counted else counted


def _hidden(stream: VideoStream, packet: Any) -> bool:
    """VP8 has frames that are decoded and never shown, in packets of their own (RFC 6386, 9.1: show_frame)."""
    return stream.codec_context.name == "vp8" and not bytes(packet)[0] >> 4 & 1


def _decoded(data: bytes, max_pixels: int, param: str) -> Iterator[av.VideoFrame]:
    """Its frames in order of presentation, one thread, none over ``max_pixels``."""
    with _opened(data, param) as (container, stream):
        stream.codec_context.thread_count = 1  # as many workers as cores, not as many threads each
        # Twice, since decoders count the margin that fills up their blocks.
        stream.codec_context.options = {"max_pixels": str(2 * max_pixels)}
        frames = container.decode(stream)
        while True:
            with _bounded(CONTAINER_BYTES + PIXEL_BYTES * stream.width * stream.height):
                frame = next(frames, None)
            if frame is None:
                return
            check_size("video", (frame.width, frame.height), max_pixels, param)
            yield frame


def _upright(frame: av.VideoFrame) -> Image.Image:
    """RGB, turned as players turn it; other than by quarters nobody films."""
    image = Image.fromarray(frame.to_ndarray(format="rgb24"))
    turn = _TURNS.get(frame.rotation % 360)
    return image if turn is None else image.transpose(turn)


def _invalid(why: str, param: str) -> BadRequest:
    return BadRequest(f"The video cannot be used: {why}", param=param, code="invalid_video")
