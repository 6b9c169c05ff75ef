"""`shapes`: generated images, 32x32, in colour, with classes of two granularities.

`shapes:train=4000,test=1000,difficulty=0.5,seed=0,size=32`, each optional. Images of another size are the same ones, of
means over areas.

A fine class is one of four outlines (disc, square, triangle, cross) with one of three fillings (plain, striped,
chequered): 12 classes; the outline is the coarse class, of which there are 4. Colour, place, size, angle and background
say nothing of the class. `difficulty`, from 0 to 1, is how strongly these vary: at 0 shapes are large, centred, upright
and clear of the background; at 1 they are 10 to 24 pixels wide, off the centre, turned by any angle, as bright as the
background, behind noise. A sample depends on the seed and on its number alone.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from anytimeify.errors import ArgumentValueError
from anytimeify.taxonomy import Taxonomy
from anytimeify.train.data.samples import Data, DataKind, Held, parse_options

__all__ = ["KIND", "shapes"]

OUTLINES = ("disc", "square", "triangle", "cross")
FILLINGS = ("plain", "striped", "chequered")
CLASSES = tuple(f"{filling} {outline}" for outline in OUTLINES for filling in FILLINGS)
SIZE = 32


def load(rest: str) -> Data:
    """The data by their options."""
    given = parse_options(f"shapes:{rest}", rest, ("train", "test", "difficulty", "seed", "size"))
    return shapes(
        int(given.get("train", 4000)),
        int(given.get("test", 1000)),
        difficulty=given.get("difficulty", 0.5),
        seed=int(given.get("seed", 0)),
        size=int(given.get("size", SIZE)),
    )


def shapes(train: int = 4000, test: int = 1000, *, difficulty: float = 0.5, seed: int = 0, size: int = SIZE) -> Data:
    """So many samples to train on and to test with; `ArgumentValueError` for none, or a difficulty or size that is
    none."""
    if not 0 <= difficulty <= 1:
        raise ArgumentValueError(f"difficulty is {difficulty}: expected a number from 0 to 1")
    if train < 1 or test < 1:
        raise ArgumentValueError(f"train={train}, test={test}: expected numbers of samples, 1 or more")
    if not 8 <= size <= SIZE:
        raise ArgumentValueError(f"size is {size}: expected a number from 8 to {SIZE}")
    coarse = [place // len(FILLINGS) for place in range(len(CLASSES))]
    taxonomy = Taxonomy.from_parents(coarse, granularities=("fine", "coarse"), classes=(CLASSES, OUTLINES))
    parts = [_drawn(count, difficulty, 2 * seed + place, size) for place, count in enumerate((train, test))]
    name = f"shapes:train={train},test={test},difficulty={difficulty:g},seed={seed},size={size}"
    return Data(name, parts[0], parts[1], CLASSES, taxonomy)


def _drawn(count: int, difficulty: float, seed: int, size: int) -> Held:
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(count, *(shape or (1, 1)), generator=generator) * (high - low) + low

    labels = torch.arange(count) % len(CLASSES)
    labels = labels[torch.randperm(count, generator=generator)]
    outline, filling = labels // len(FILLINGS), labels % len(FILLINGS)
    # Coordinates of the pixels as the shape sees them: centred, upright, with a half width of 1.
    half = uniform(12 - 7 * difficulty, 12)
    away = difficulty * (SIZE / 2 - half)
    rows, columns = torch.meshgrid(torch.arange(SIZE) - 15.5, torch.arange(SIZE) - 15.5, indexing="ij")
    y, x = rows - away * uniform(-1, 1), columns - away * uniform(-1, 1)
    angle = difficulty * uniform(-math.pi, math.pi)
    u = (x * angle.cos() + y * angle.sin()) / half
    v = (y * angle.cos() - x * angle.sin()) / half
    inside = _choose(outline, [u**2 + v**2 < 1, (u.abs() < 0.85) & (v.abs() < 0.85), _triangle(u, v), _cross(u, v)])
    stripes = (torch.floor(u * 3) % 2) > 0
    chequers = ((torch.floor(u * 2.5) + torch.floor(v * 2.5)) % 2) > 0
    dark = _choose(filling, [torch.zeros_like(inside), stripes, chequers])
    # Two colours of the shape, and one behind it, which comes as close as the difficulty says.
    colours = [uniform(0, 1, 3, 1, 1) for _ in range(3)]
    bright, shade, behind = 0.55 + 0.45 * colours[0], 0.3 * colours[1], 0.25 + 0.5 * difficulty * (colours[2] - 0.5)
    image = torch.where(dark[:, None], shade, bright)
    image = torch.where(inside[:, None], image, behind)
    image = image + 0.2 * difficulty * torch.randn(count, 3, SIZE, SIZE, generator=generator)
    if size != SIZE:
        image = F.adaptive_avg_pool2d(image, size)
    return Held((image.clamp(0, 1) * 255).round().to(torch.uint8), labels)


def _triangle(u: Tensor, v: Tensor) -> Tensor:
    return (v < 0.8) & (v > 2 * u.abs() - 0.95)


def _cross(u: Tensor, v: Tensor) -> Tensor:
    arms = (u.abs() < 0.35) | (v.abs() < 0.35)
    return arms & (u.abs() < 1) & (v.abs() < 1)


def _choose(kinds: Tensor, masks: list[Tensor]) -> Tensor:
    """Of every sample the mask of its kind."""
    return torch.stack(masks)[kinds, torch.arange(len(kinds))]


KIND = DataKind("shapes", "generated images, 32x32, colour, 12 fine and 4 coarse classes", load, "shapes")
