"""Encoded image -> RGB, as a person looking at it would expect.

Orientation from EXIF is applied; transparency is laid on white; palettes, grey, 16 bit and CMYK become 8-bit RGB; of an
animation the first frame is taken. What cannot be an image for the model is a BadRequest, decided from the header where
possible.
"""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from coatcheck.errors import BadRequest
from coatcheck.intake.limits import check_size, too_large
from coatcheck.intake.media.source import Source

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # no others: each decoder is attack surface


def from_data_url(source: Source) -> bytes:
    """The bytes of a ``data:[type];base64,...`` URL; the type is not trusted, so not read. Raises BadRequest."""
    head, comma, data = source.url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise BadRequest(
            f"A data URL must be of the form data:{source.kind}/...;base64,...",
            param=source.param,
            code=f"invalid_{source.kind}_url",
        )
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest("The data URL is not valid base64", param=source.param, code="invalid_base64") from None


def opened(data: bytes, max_pixels: int, param: str) -> Image.Image:
    """The image, its header read and nothing decoded. Raises BadRequest, also for one over ``max_pixels``."""
    with _quiet():
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except UnidentifiedImageError:
            raise BadRequest(
                f"This is not an image of a supported format ({', '.join(FORMATS)})", param=param, code="invalid_image"
            ) from None
        except Image.DecompressionBombError:
            raise too_large("image", "more pixels than any limit", max_pixels, param) from None
        except Exception as error:  # Pillow's parsers raise whatever they trip over in corrupt data
            raise _broken(error, param) from None
        check_size("image", image.size, max_pixels, param)
        return image


def to_rgb(image: Image.Image, max_pixels: int, param: str) -> Image.Image:
    """Decodes what was opened to mode RGB. Raises BadRequest."""
    with _quiet():
        try:
            image.load()
            return _flatten(_upright(image))
        except Image.DecompressionBombError:
            raise too_large("image", "more pixels than any limit", max_pixels, param) from None
        except Exception as error:  # as above
            raise _broken(error, param) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Pillow's notes on odd metadata, and its own pixel limit: ours is checked."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # corrupt EXIF: viewers show the image as stored
        return image


def _flatten(image: Image.Image) -> Image.Image:
    """Any mode to RGB; raises ValueError for modes that have no conversion."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _narrow(image).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    page = Image.new("RGBA", layer.size, "white")
    page.alpha_composite(layer)
    return page.convert("RGB")


def _narrow(image: Image.Image) -> Image.Image:
    """Wide grey to 8 bit: integers are 0 to 65535, floats 0 to 1 (or 0 to 255 if any is above 1)."""
    values = np.nan_to_num(np.asarray(image).astype(np.float32))
    scale = 255 / 65535
    if image.mode == "F":
        scale = 255.0 if values.max() <= 1 else 1.0
    return Image.fromarray(np.clip(np.rint(values * scale), 0, 255).astype(np.uint8))


def _broken(error: Exception, param: str) -> BadRequest:
    reason = "it is truncated" if "truncated" in str(error).lower() else "it is damaged"
    return BadRequest(f"The image cannot be decoded: {reason}", param=param, code="invalid_image")
