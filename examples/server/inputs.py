"""What clients send becomes arrays, or is refused with a reason. Nothing here runs what it reads."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from PIL import Image, ImageOps

from anytimeify.errors import ArgumentValueError
from anytimeify.serving.backend import Input

__all__ = ["IMAGE_TYPES", "Images", "Refused", "from_json"]

IMAGE_TYPES = ("image/png", "image/jpeg", "image/webp")


class Refused(Exception):  # noqa: N818  # that a request is wrong is no fault of the server
    """A request that is not answered: the status of the response, and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


def from_json(body: bytes, inputs: Sequence[Input]) -> list[Any]:
    """The sample of `{"inputs": {"x": [[...], ...]}}`: one array for each input, without a batch."""
    try:
        document = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:  # of text that is no JSON, no UTF-8, or nested without end
        raise Refused(400, f"the body is no JSON that can be read: {error}") from error
    given = document.get("inputs") if isinstance(document, dict) else None
    names = [input.name for input in inputs]
    if not isinstance(given, dict) or given.keys() != set(names):
        wanted = ", ".join(f'"{name}": [...]' for name in names)
        raise Refused(400, f'the body should be {{"inputs": {{{wanted}}}}}')
    return [_array(given[input.name], input) for input in inputs]


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _array(value: Any, input: Input) -> Any:
    """Numbers of the type of the input, with no loss but that of rounding."""
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError) as error:  # lists of different lengths
        raise Refused(400, f"input '{input.name}' is no array of numbers") from error
    if array.dtype.kind not in "biuf":
        raise Refused(400, f"input '{input.name}' is no array of numbers")
    wanted = np.dtype(input.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        taken = array.astype(wanted)
    exact = wanted.kind == "f" or (np.can_cast(array.dtype, wanted, "same_kind") and (taken == array).all())
    if not exact or not np.isfinite(taken).all():
        raise Refused(400, f"input '{input.name}' takes {input.dtype}, and some of its numbers are none")
    return taken


@dataclass(frozen=True)
class Images:
    """PNG, JPEG and WebP files as a model takes them: the middle of the picture, resized, `(value - mean) / std` of
    each channel, whose values are from 0 to 1."""

    channels: int
    height: int
    width: int
    mean: Sequence[float] = (0.485, 0.456, 0.406)
    std: Sequence[float] = (0.229, 0.224, 0.225)
    max_pixels: int = 2**24

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if 1 != len(values) < self.channels or (name == "std" and 0 in values):
                raise ArgumentValueError(f"{name} is {list(values)}: expected a number for each channel, no std of 0")
        if self.height < 1 or self.width < 1:
            raise ArgumentValueError(f"the image size is {[self.height, self.width]}: expected 1 or more")
        Image.init()  # Pillow would find its readers at the first request

    def sample(self, body: bytes) -> list[Any]:
        """One array of `[channels, height, width]`. Its size is looked at before anything is decoded."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of Pillow: bounds of its own, broken metadata
                picture = Image.open(io.BytesIO(body), formats=("PNG", "JPEG", "WEBP"))
                if picture.width * picture.height > self.max_pixels:
                    raise Refused(
                        413, f"the image has {picture.width} x {picture.height} pixels: at most {self.max_pixels} fit"
                    )
                kind, size = "L" if self.channels == 1 else "RGB", (self.width, self.height)
                picture.draft(kind, size)  # JPEG is decoded at the smallest scale that is enough
                upright = ImageOps.exif_transpose(picture).convert(kind)
        except Refused:
            raise
        except Image.DecompressionBombError as error:
            raise Refused(413, f"the image has too many pixels: at most {self.max_pixels} fit") from error
        except Exception as error:  # Pillow raises all kinds of them for damaged files
            raise Refused(400, "the body is no PNG, JPEG or WebP image that can be read") from error
        fitted = ImageOps.fit(upright, size, Image.Resampling.BILINEAR)
        values = np.asarray(fitted, np.float32).reshape(self.height, self.width, self.channels) / 255
        scaled = (values - _row(self.mean, self.channels)) / _row(self.std, self.channels)
        return [np.ascontiguousarray(scaled.transpose(2, 0, 1))]


def _row(values: Sequence[float], count: int) -> Any:
    return np.asarray(values[:count], np.float32)
