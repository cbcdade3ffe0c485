"""Deterministic drawn scenes: one to five coloured shapes on a three by three layout.

A scene is a function of (split, seed, size) alone, so whoever names these three sees the same picture. The splits
never share a random stream: ``train`` feeds the trainer, ``validation`` its progress report, ``held-out`` the
accuracy in the model card, the tests and load tests. Sizes are (width, height) in pixels; positions and radii of
items are in pixels too, with the origin at the top left.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from PIL import Image, ImageDraw

Split = Literal["train", "validation", "held-out"]

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (215, 38, 38),
    "green": (38, 160, 65),
    "blue": (40, 80, 220),
    "yellow": (242, 214, 36),
    "purple": (138, 55, 175),
    "orange": (246, 136, 26),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "diamond", "cross")
# The nine places in reading order; an item's cell is an index into this tuple.
PLACES: tuple[str, ...] = (
    "top left",
    "top",
    "top right",
    "left",
    "middle",
    "right",
    "bottom left",
    "bottom",
    "bottom right",
)
MAX_ITEMS = 5
MIN_SIDE, MAX_SIDE = 112, 448
# Drawn this many times larger and averaged down, for smooth edges.
_OVERSAMPLE = 2


@dataclass(frozen=True, slots=True)
class Item:
    """One drawn shape: its colour and shape names, its cell (0..8), centre and radius in pixels, tilt in degrees."""

    color: str
    shape: str
    cell: int
    x: float
    y: float
    radius: float
    tilt: float
    rgb: tuple[int, int, int]

    @property
    def row(self) -> int:
        """0 at the top, 2 at the bottom."""
        return self.cell // 3

    @property
    def column(self) -> int:
        """0 at the left, 2 at the right."""
        return self.cell % 3

    @property
    def name(self) -> str:
        """Colour and shape, such as ``red circle``."""
        return f"{self.color} {self.shape}"

    @property
    def place(self) -> str:
        """The name of its cell, such as ``top left``."""
        return PLACES[self.cell]


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture and what is in it; items are in reading order."""

    seed: int
    split: Split
    width: int
    height: int
    background: tuple[int, int, int]
    items: tuple[Item, ...]
    image: Image.Image = field(repr=False, compare=False)


def _corners(item: Item) -> list[tuple[float, float]]:
    """The polygon of an item that is no circle, in pixels."""
    points: list[tuple[float, float]]  # in units of the radius
    if item.shape == "square":
        points = [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]
    elif item.shape == "triangle":
        points = [(0.0, -0.95), (0.92, 0.75), (-0.92, 0.75)]
    elif item.shape == "diamond":
        points = [(0.0, -1.0), (0.78, 0.0), (0.0, 1.0), (-0.78, 0.0)]
    elif item.shape == "cross":
        a, b = 0.32, 0.92
        points = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a)]
        points += [(a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]
    elif item.shape == "star":
        points = []
        for k in range(10):
            length = 1.0 if k % 2 == 0 else 0.42
            angle = math.pi * k / 5
            points.append((length * math.sin(angle), -length * math.cos(angle)))
    else:
        raise ValueError(f"no polygon for shape {item.shape!r}")
    sin, cos = math.sin(math.radians(item.tilt)), math.cos(math.radians(item.tilt))
    return [
        (item.x + item.radius * (px * cos - py * sin), item.y + item.radius * (px * sin + py * cos))
        for px, py in points
    ]


def _draw(width: int, height: int, background: tuple[int, int, int], items: tuple[Item, ...]) -> Image.Image:
    """The RGB picture of `items`, `width` x `height` pixels."""
    k = _OVERSAMPLE
    canvas = Image.new("RGB", (width * k, height * k), background)
    pen = ImageDraw.Draw(canvas)
    for item in items:
        if item.shape == "circle":
            r = item.radius * 0.92
            box = ((item.x - r) * k, (item.y - r) * k, (item.x + r) * k, (item.y + r) * k)
            pen.ellipse(box, fill=item.rgb)
        else:
            pen.polygon([(x * k, y * k) for x, y in _corners(item)], fill=item.rgb)
    return canvas.reduce(k)


def random_size(rng: random.Random, low: int = MIN_SIDE, high: int = MAX_SIDE) -> tuple[int, int]:
    """A (width, height) in pixels with sides in low..high: six in ten square, the rest up to 2:1 either way."""
    long = rng.randint(low, high)
    if rng.random() < 0.6:
        return long, long
    short = rng.randint(max(low, long // 2), long)
    return (long, short) if rng.random() < 0.5 else (short, long)


def make_scene(
    seed: int,
    size: tuple[int, int] | None = None,
    *,
    split: Split = "held-out",
    count: int | None = None,
) -> Scene:
    """The scene of this seed.

    `size` is (width, height) in pixels (drawn from 112..448 if None); `count` fixes the number of items (1..5).
    Each item lies wholly inside its own cell of the three by three layout, near the cell's centre.
    """
    rng = random.Random(f"coatcheck scene {split} {seed}")
    drawn_size = random_size(rng)
    width, height = size if size is not None else drawn_size
    shade = rng.randint(205, 255)
    background = (
        min(255, shade + rng.randint(-8, 8)),
        min(255, shade + rng.randint(-8, 8)),
        min(255, shade + rng.randint(-8, 8)),
    )
    drawn_count = rng.randint(1, MAX_ITEMS)
    n = count if count is not None else drawn_count
    if not 1 <= n <= MAX_ITEMS:
        raise ValueError(f"a scene has 1 to {MAX_ITEMS} items, not {n}")
    cell_w, cell_h = width / 3, height / 3
    side = min(cell_w, cell_h)
    # A scene of few colours or few shapes makes for interesting counts.
    colors = rng.sample(list(COLORS), rng.choice((2, 3, 6, 6)))
    shapes = rng.sample(SHAPES, rng.choice((2, 3, 6, 6)))
    items = []
    for cell in sorted(rng.sample(range(9), n)):
        color, shape = rng.choice(colors), rng.choice(shapes)
        radius = side * rng.uniform(0.29, 0.43)
        slack_x, slack_y = cell_w / 2 - radius * 1.08, cell_h / 2 - radius * 1.08
        slack_x, slack_y = min(max(slack_x, 0.0), cell_w * 0.2), min(max(slack_y, 0.0), cell_h * 0.2)
        r, g, b = COLORS[color]
        rgb = tuple(min(255, max(0, c + rng.randint(-12, 12))) for c in (r, g, b))
        items.append(
            Item(
                color=color,
                shape=shape,
                cell=cell,
                x=(cell % 3 + 0.5) * cell_w + rng.uniform(-slack_x, slack_x),
                y=(cell // 3 + 0.5) * cell_h + rng.uniform(-slack_y, slack_y),
                radius=radius,
                tilt=rng.uniform(-8, 8),
                rgb=(rgb[0], rgb[1], rgb[2]),
            )
        )
    placed = tuple(items)
    return Scene(seed, split, width, height, background, placed, _draw(width, height, background, placed))


def scenes(n: int, seed: int, size: tuple[int, int] | None = None, *, split: Split = "held-out") -> Iterator[Scene]:
    """`n` scenes that follow from `seed`; different seeds share none (below 10 million scenes a seed)."""
    for k in range(n):
        yield make_scene(seed * 10_000_000 + k, size, split=split)


def encode_png(image: Image.Image) -> bytes:
    """The image as PNG bytes, lightly compressed."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
