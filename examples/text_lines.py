"""Lines of text, upright and upside down, drawn with the fonts that matplotlib brings, as a scan shows them."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torch import Tensor

__all__ = ["HEIGHT", "TESTING", "TRAINING", "WIDTH", "lines"]

HEIGHT, WIDTH = 48, 192
TRAINING = ("DejaVuSans", "DejaVuSansMono", "DejaVuSerif")
TESTING = ("STIXGeneral",)  # another family, with other letters


def lines(count: int, families: tuple[str, ...], seed: int) -> tuple[Tensor, Tensor]:
    """So many images `[count, 3, 48, 192]` from -1 to 1, and 1 where a line is upside down. The text is from Python's
    manual."""
    draw = random.Random(seed)
    images = torch.zeros(count, 3, HEIGHT, WIDTH)
    turned = torch.tensor([draw.randrange(2) for _ in range(count)])
    for image, upside_down in zip(images, turned.tolist(), strict=True):
        line = _line(draw, families)
        values = np.asarray(line.rotate(180) if upside_down else line, np.float32) / 127.5 - 1
        image[:, :, : values.shape[1]] = torch.from_numpy(values)  # the rest is grey, as the classifier was trained
    return images, turned


@cache
def _words() -> list[str]:
    words = " ".join(topics[name] for name in sorted(topics)).split()
    return [word for word in words if len(word) > 3 and word.isascii() and any(map(str.isalpha, word))]


@cache
def _fonts(families: tuple[str, ...], size: int) -> list[ImageFont.FreeTypeFont]:
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    styles = ("", "-Bold", "-Oblique", "-Italic", "Bol", "Italic", "BolIta")
    files = [folder / f"{family}{style}.ttf" for family in families for style in styles]
    return [ImageFont.truetype(file, size) for file in files if file.exists()]


def _line(draw: random.Random, families: tuple[str, ...]) -> Image.Image:
    """Grey, 48 pixels high and at most 192 wide: slanted, of low contrast, blurred, noisy, of few pixels."""
    font = draw.choice(_fonts(families, draw.randrange(24, 41, 4)))
    text = " ".join(draw.choices(_words(), k=draw.randint(1, 2)))
    left, top, right, bottom = font.getbbox(text)
    paper, ink = draw.sample(range(256), 2)
    ink = (paper + 128 + draw.randint(-60, 60)) % 256 if abs(paper - ink) < 60 else ink
    margin = draw.randint(1, 8)
    line = Image.new("L", (int(right - left) + 2 * margin, int(bottom - top) + 2 * margin), paper)
    ImageDraw.Draw(line).text((margin - left, margin - top), text, ink, font)
    line = line.rotate(draw.uniform(-3, 3), Image.Resampling.BILINEAR, fillcolor=paper)
    coarse = draw.randint(16, HEIGHT)  # as if scanned with so many pixels
    line = line.resize((max(4, line.width * coarse // line.height), coarse), Image.Resampling.BILINEAR)
    line = line.resize((max(8, min(WIDTH, line.width * HEIGHT // coarse)), HEIGHT), Image.Resampling.BILINEAR)
    line = line.filter(ImageFilter.GaussianBlur(draw.uniform(0, 1)))
    noise = np.random.default_rng(draw.getrandbits(32)).normal(0, draw.uniform(0, 10), (HEIGHT, line.width))
    return Image.fromarray(np.clip(np.asarray(line) + noise, 0, 255).astype(np.uint8))
