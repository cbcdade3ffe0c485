"""Training batches: drawn images and packed conversations about them.

One row holds one prefix (an image, or several) and many independent conversations about it, each of which sees the
prefix and itself alone; so an image is encoded once for all of its questions. Batch number k of a seed is always
the same, whichever process draws it. Shapes: B rows, L tokens a row, T tokens to predict.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer
from torch.utils.data import IterableDataset, get_worker_info

from training.model_config import TOKEN_SIDE
from training.network import MAX_GRID
from training.questions import GREETING, KINDS, Question, ask_about_many, ask_any, chat, off_topic
from training.scenes import COLORS, PLACES, SHAPES, Scene, Split, make_scene
from training.tokenizer import SPECIAL_IDS, build_tokenizer

WEIGHTS: dict[str, float] = {
    "color": 1.0,
    "shape": 1.0,
    "count": 2.0,
    "position": 1.5,
    "place": 1.5,
    "yes-no": 2.5,
    "describe": 1.2,
}
# The mix for going on from a trained model: mostly what is learned last, positions and comparisons of positions.
HARD_WEIGHTS: dict[str, float] = {
    "color": 0.8,
    "shape": 0.8,
    "count": 2.0,
    "position": 3.5,
    "place": 1.0,
    "yes-no": 6.0,
    "describe": 1.0,
}
MIXES: dict[str, dict[str, float]] = {"even": WEIGHTS, "hard": HARD_WEIGHTS}
METRIC_KINDS: tuple[str, ...] = (*KINDS, "images", "chat")
SYSTEM_PROMPTS: tuple[str, ...] = (
    "You are a helpful assistant.",
    "Answer briefly.",
    "You answer questions about images.",
    "Be kind, and answer in English.",
)
_START, _END = SPECIAL_IDS["<|im_start|>"], SPECIAL_IDS["<|im_end|>"]
_PAD, _IMAGE = SPECIAL_IDS["<|endoftext|>"], SPECIAL_IDS["<|image_pad|>"]
_IMAGE_START, _IMAGE_END = SPECIAL_IDS["<|vision_start|>"], SPECIAL_IDS["<|vision_end|>"]
Grid = tuple[int, int]  # rows, columns of merged tokens


class Words:
    """Text to token ids, remembering what it has seen."""

    def __init__(self, tokenizer: Tokenizer | None = None) -> None:
        self._tokenizer = tokenizer or build_tokenizer()
        self._known: dict[str, list[int]] = {}

    def __call__(self, text: str) -> list[int]:
        ids = self._known.get(text)
        if ids is None:
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
            if len(self._known) < 50_000:
                self._known[text] = ids
        return ids

    def turn(self, role: str, text: str) -> list[int]:
        """A whole message as the chat template writes it, up to and with its line break."""
        return [_START, *self(f"{role}\n{text}"), _END, *self("\n")]


@dataclass(slots=True)
class Row:
    """One row under construction; `positions` holds (time, row, column) triples."""

    ids: list[int] = field(default_factory=list)
    positions: list[tuple[int, int, int]] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    sees_prefix: list[bool] = field(default_factory=list)
    # (index of the token before, token, answer number within the row)
    targets: list[tuple[int, int, int]] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    next_position: int = 0
    segment: int = 0
    attends: bool = True

    def text(self, ids: list[int]) -> None:
        """Append text tokens."""
        p = self.next_position
        self.ids += ids
        self.positions += [(k, k, k) for k in range(p, p + len(ids))]
        self.segments += [self.segment] * len(ids)
        self.sees_prefix += [self.attends] * len(ids)
        self.next_position = p + len(ids)

    def image(self, grid: Grid) -> None:
        """Append an image of `grid` merged tokens between its two markers."""
        self.text([_IMAGE_START])
        p, n = self.next_position, grid[0] * grid[1]
        self.starts.append(len(self.ids))
        self.ids += [_IMAGE] * n
        self.positions += [(p, p + r, p + c) for r in range(grid[0]) for c in range(grid[1])]
        self.segments += [self.segment] * n
        self.sees_prefix += [self.attends] * n
        self.next_position = p + max(grid)
        self.text([_IMAGE_END])

    def answer(self, ids: list[int], kind: str) -> None:
        """Append an answer, whose tokens and end are to be predicted."""
        number = len(self.kinds)
        self.kinds.append(METRIC_KINDS.index(kind))
        before = len(self.ids) - 1
        self.targets += [(before + k, token, number) for k, token in enumerate([*ids, _END])]
        self.text([*ids, _END])


def vary(text: str, rng: random.Random) -> str:
    """The text, or at times a careless spelling of it: small first letter, no mark at the end."""
    draw = rng.random()
    if draw < 0.08:
        text = text[0].lower() + text[1:]
    if draw > 0.96 or draw < 0.04:
        text = text.rstrip("?.")
    return text


def draw_image(scene_seed: int, grid: Grid, rng: random.Random, split: Split, count: int | None) -> tuple[Scene, Any]:
    """A scene and its RGB pixels (28 rows, 28 columns a merged token; uint8), resized and at times recompressed."""
    width, height = grid[1] * TOKEN_SIDE, grid[0] * TOKEN_SIDE
    drawn = (width, height)
    draw = rng.random()
    if max(grid) <= 6 and draw < 0.1:
        drawn = (width // 2, height // 2)
    elif draw < 0.5:
        drawn = (max(100, width + rng.randint(-13, 13)), max(100, height + rng.randint(-13, 13)))
    scene = make_scene(scene_seed, drawn, split=split, count=count)
    image = scene.image
    if rng.random() < 0.12:
        buffer = io.BytesIO()
        image.save(buffer, format="JPEG", quality=rng.randint(60, 95))
        image = Image.open(buffer).convert("RGB")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return scene, np.asarray(image)


def token_labels(scene: Scene, grid: Grid) -> NDArray[np.int64]:
    """Per merged token (M, 2): colour and shape of the item that covers its centre, counted from 1, or 0 and 0."""
    x = (np.arange(grid[1]) + 0.5)[None, :] * (scene.width / grid[1])
    y = (np.arange(grid[0]) + 0.5)[:, None] * (scene.height / grid[0])
    slack = 0.25 * scene.width / grid[1]
    nearest = np.full(grid, np.inf)
    labels = np.zeros((*grid, 2), dtype=np.int64)
    for item in scene.items:
        distance = np.maximum(np.abs(x - item.x), np.abs(y - item.y)) - item.radius * 0.85
        covered = (distance < slack) & (distance < nearest)
        nearest = np.where(covered, distance, nearest)
        labels[covered] = (list(COLORS).index(item.color) + 1, SHAPES.index(item.shape) + 1)
    return labels.reshape(-1, 2)


def cell_labels(scene: Scene) -> NDArray[np.int64]:
    """Per cell (9, 2): colour and shape of its item, counted from 1, or 0 and 0."""
    labels = np.zeros((len(PLACES), 2), dtype=np.int64)
    for item in scene.items:
        labels[item.cell] = (list(COLORS).index(item.color) + 1, SHAPES.index(item.shape) + 1)
    return labels


def random_grid(rng: random.Random, low: int, high: int) -> Grid:
    """A grid with its long side in low..high merged tokens, half of them square, up to 2:1."""
    long = rng.randint(low, high)
    if rng.random() < 0.5:
        return long, long
    short = rng.randint(max(4, long // 2), long)
    return (long, short) if rng.random() < 0.5 else (short, long)


class Drawer:
    """Draws batch number k of a seed; `tokens` is the size of a batch in tokens (B x L), about."""

    def __init__(self, seed: int, tokens: int, split: Split = "train", mix: str = "even") -> None:
        self.seed, self.tokens, self.split = seed, tokens, split
        self.weights = MIXES[mix]
        self.conversations = 12 if mix == "hard" else 8
        self.words = Words()

    def batch(self, number: int) -> dict[str, Any]:
        """Batch `number`: tensors for `training.network.Trainee`."""
        rng = random.Random(f"coatcheck batch {self.split} {self.seed} {number}")
        form = rng.random()
        if form < 0.80:
            top = rng.random()
            grids = [random_grid(rng, 4, 16) if top > 0.05 else random_grid(rng, 17, MAX_GRID)]
        elif form < 0.92:
            n = rng.choice((2, 2, 2, 3, 4))
            grids = [random_grid(rng, 4, 12 if n == 2 else 8) for _ in range(n)]
            if rng.random() < 0.5:
                grids = [grids[0]] * n
        else:
            grids = [random_grid(rng, 4, 12)]
        text_first = form >= 0.92
        image_tokens = sum(r * c for r, c in grids)
        conversations = 1 if text_first else self.conversations if image_tokens <= 256 else 16
        system = rng.choice(SYSTEM_PROMPTS) if rng.random() < 0.15 else None
        opening = rng.random() < 0.04
        estimate = image_tokens + (40 if text_first else 24 * conversations)
        rows = max(2, self.tokens // estimate)
        built, pixels, token, cell = [], [], [], []
        first = number * 100_000 + self.seed * 10**12
        for b in range(rows):
            one = len(grids) > 1 and rng.random() < 0.4
            drawn = [
                draw_image(first + b * len(grids) + k, grid, rng, self.split, 1 if one else None)
                for k, grid in enumerate(grids)
            ]
            scenes = [scene for scene, _ in drawn]
            pixels.append([array for _, array in drawn])
            token.append(np.concatenate([token_labels(s, g) for s, g in zip(scenes, grids, strict=True)]))
            cell.append(np.stack([cell_labels(s) for s in scenes]))
            row = Row()
            if system is not None:
                row.text(self.words.turn("system", system))
            if opening:
                row.text([*self.words.turn("user", "Hello!"), *self.words.turn("assistant", GREETING)])
            row.text([_START, *self.words("user\n")])
            if text_first:
                question = ask_any(scenes[0], rng, self.weights)
                row.text(self.words(vary(question.text, rng)))
                row.image(grids[0])
                row.segment = 1
                row.text([_END, *self.words("\n"), _START, *self.words("assistant\n")])
                row.answer(self.words(question.answer), question.kind)
            else:
                for grid in grids:
                    row.image(grid)
                self._conversations(row, scenes, rng, conversations)
            built.append(row)
        if text_first:
            _align(built)
        return _collate(built, grids, pixels, np.stack(token), np.stack(cell))

    def _question(self, scenes: list[Scene], rng: random.Random) -> Question:
        if rng.random() < 0.015:
            return off_topic(rng)
        if len(scenes) > 1:
            return ask_about_many(scenes, rng, self.weights)
        if rng.random() < 0.01:
            return Question("How many images are there?", "1", "images")
        return ask_any(scenes[0], rng, self.weights)

    def _conversations(self, row: Row, scenes: list[Scene], rng: random.Random, n: int) -> None:
        """Append `n` conversations that share the prefix, and now and then one without an image."""
        words, after_prefix = self.words, row.next_position
        for k in range(n):
            row.segment, row.attends, row.next_position = k + 1, True, after_prefix
            if rng.random() < 0.06:
                row.attends, row.next_position = False, 0
                if rng.random() < 0.2:
                    row.text(words.turn("system", rng.choice(SYSTEM_PROMPTS)))
                question = chat(rng, ask_any(scenes[0], rng, self.weights))
                row.text([_START, *words(f"user\n{question.text}"), _END, *words("\n")])
                row.text([_START, *words("assistant\n")])
                row.answer(words(question.answer), "chat")
                continue
            for turn in range(rng.choice((1, 1, 1, 1, 1, 2, 2, 3))):
                if turn:
                    row.text([*words("\n"), _START, *words("user\n")])
                question = self._question(scenes, rng)
                row.text([*words(vary(question.text, rng)), _END, *words("\n"), _START, *words("assistant\n")])
                row.answer(words(question.answer), question.kind)


def _align(rows: list[Row]) -> None:
    """Pad rows on the left, so that their images begin at the same column."""
    column = max(row.starts[0] for row in rows)
    for row in rows:
        pad = column - row.starts[0]
        row.ids[:0] = [_PAD] * pad
        row.positions[:0] = [(0, 0, 0)] * pad
        row.segments[:0] = [-1] * pad
        row.sees_prefix[:0] = [False] * pad
        row.targets = [(before + pad, token, number) for before, token, number in row.targets]
        row.starts = [column]


def _collate(
    rows: list[Row], grids: list[Grid], pixels: list[list[Any]], token: NDArray[np.int64], cell: NDArray[np.int64]
) -> dict[str, Any]:
    """Pad the rows on the right to a multiple of 16 tokens and stack everything."""
    length = -(-max(len(row.ids) for row in rows) // 16) * 16
    ids = np.full((len(rows), length), _PAD, dtype=np.int64)
    positions = np.zeros((len(rows), 3, length), dtype=np.int32)
    segments = np.full((len(rows), length), -1, dtype=np.int16)
    sees_prefix = np.zeros((len(rows), length), dtype=np.bool_)
    where: list[int] = []
    targets: list[int] = []
    answers: list[int] = []
    kinds: list[int] = []
    for b, row in enumerate(rows):
        n = len(row.ids)
        ids[b, :n] = row.ids
        positions[b, :, :n] = np.asarray(row.positions).T
        segments[b, :n] = row.segments
        sees_prefix[b, :n] = row.sees_prefix
        for before, token_id, number in row.targets:
            where.append(b * length + before)
            targets.append(token_id)
            answers.append(len(kinds) + number)
        kinds += row.kinds
    grid = np.concatenate([np.indices(g).reshape(2, -1).T for g in grids])
    slots = [np.stack([row_pixels[k] for row_pixels in pixels]) for k in range(len(grids))]
    return {
        "images": [torch.from_numpy(slot) for slot in slots],
        "starts": rows[0].starts,
        "ids": torch.from_numpy(ids),
        "positions": torch.from_numpy(positions),
        "segments": torch.from_numpy(segments),
        "sees_prefix": torch.from_numpy(sees_prefix),
        "where": torch.tensor(where),
        "targets": torch.tensor(targets),
        "answers": torch.tensor(answers),
        "kinds": torch.tensor(kinds),
        "token": torch.from_numpy(token),
        "grid": torch.from_numpy(grid)[None],
        "cell": torch.from_numpy(cell),
    }


class Batches(IterableDataset[dict[str, Any]]):
    """Batches without end, for a DataLoader: worker w of W draws numbers w, w + W, ..."""

    def __init__(self, seed: int, tokens: int, mix: str = "even") -> None:
        self.seed, self.tokens, self.mix = seed, tokens, mix

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        torch.set_num_threads(1)
        number, step = (0, 1) if info is None else (info.id, info.num_workers)
        drawer = Drawer(self.seed, self.tokens, mix=self.mix)
        while True:
            yield drawer.batch(number)
            number += step
