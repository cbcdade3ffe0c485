"""Questions about drawn scenes, each with the one right answer.

`ask` draws a question of a kind about one scene (or None where the scene allows none without ambiguity),
`ask_about_many` one about several images in a prompt, `chat` a line of text without an image. Question forms are
listed in `FORMS`; the model card documents the same list.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from training.scenes import COLORS, PLACES, SHAPES, Item, Scene


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, the one right answer, and the kind under which accuracy is counted."""

    text: str
    answer: str
    kind: str


KINDS: tuple[str, ...] = ("color", "shape", "count", "position", "place", "yes-no", "describe")
ORDINALS: tuple[str, ...] = ("first", "second", "third", "fourth")
DESCRIBE: tuple[str, ...] = ("Describe the image.", "What is in the image?", "What do you see?")
# {c} colour, {s} shape, {p} plural of a shape, {at} a place with its preposition.
FORMS: dict[str, tuple[str, ...]] = {
    "color": ("What color is the {s}?", "What colour is the {s}?"),
    "shape": ("What shape is the {c} object?", "What shape is the {c} one?"),
    "count": (
        "How many shapes are there?",
        "How many shapes are in the image?",
        "How many {c} shapes are there?",
        "How many {p} are there?",
        "How many {c} {p} are there?",
    ),
    "position": ("Where is the {c} {s}?", "Where is the {s}?"),
    "place": ("What is {at}?",),
    "yes-no": (
        "Is there a {c} {s}?",
        "Is there a {s}?",
        "Is there a {c} shape?",
        "Is the {s} {c}?",
        "Is the {c} {s} left of the {c} {s}?",
        "Is the {c} {s} right of the {c} {s}?",
        "Is the {c} {s} above the {c} {s}?",
        "Is the {c} {s} below the {c} {s}?",
    ),
    "describe": DESCRIBE,
}

GREETING = "Hello! Send me an image of colored shapes and ask me about it."
ABILITY = "I answer questions about images of colored shapes: their color, shape, number and position."
NO_IMAGE = "Please send an image first."
OFF_TOPIC = "I can only answer questions about colored shapes."
CHAT: dict[str, str] = {
    "Hello!": GREETING,
    "Hello": GREETING,
    "Hello, how are you?": GREETING,
    "Hi!": GREETING,
    "Hi": GREETING,
    "Hi there!": GREETING,
    "Good morning!": GREETING,
    "What can you do?": ABILITY,
    "Who are you?": ABILITY,
    "What are you?": ABILITY,
    "Help": ABILITY,
    "Can you help me?": ABILITY,
    "Thanks!": "You are welcome!",
    "Thank you!": "You are welcome!",
    "Thank you": "You are welcome!",
    "Goodbye!": "Goodbye!",
    "Bye!": "Goodbye!",
}
_OTHER_TEXT = """
weather today tell me about Paris write a poem the history of which river is longest please explain how engines
work translate this sentence into French my name was John and we went to market who wrote that book some code
for sorting numbers when did it begin why not make list cities with more than one million people lorem ipsum
dolor sit amet hello world count from until story cat dog house money music time year capital president water
"""
_WORDS: list[str] = _OTHER_TEXT.split()


def plural(shape: str) -> str:
    """``circle`` -> ``circles``, ``cross`` -> ``crosses``."""
    return shape + ("es" if shape.endswith("s") else "s")


def at(place: str) -> str:
    """A place with its preposition: ``at the top left``, ``on the left``, ``in the middle``."""
    if place == "middle":
        return "in the middle"
    return f"on the {place}" if place in ("left", "right") else f"at the {place}"


def with_article(name: str) -> str:
    """``red circle`` -> ``a red circle``; ``orange star`` -> ``an orange star``."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def description(scene: Scene) -> str:
    """All items in reading order, such as ``A red circle at the top left, a blue star in the middle.``"""
    text = ", ".join(f"{with_article(item.name)} {at(item.place)}" for item in scene.items)
    return text[0].upper() + text[1:] + "."


def _unique(scene: Scene, of: Callable[[Item], str]) -> list[Item]:
    """The items whose value of `of` no other item of the scene has."""
    values = [of(item) for item in scene.items]
    return [item for item in scene.items if values.count(of(item)) == 1]


def _color_of(item: Item) -> str:
    return item.color


def _shape_of(item: Item) -> str:
    return item.shape


def _name_of(item: Item) -> str:
    return item.name


def _color(scene: Scene, rng: random.Random) -> Question | None:
    form = rng.choice(FORMS["color"])
    absent = [s for s in SHAPES if s not in map(_shape_of, scene.items)]
    if absent and rng.random() < 0.1:
        shape = rng.choice(absent)
        return Question(form.format(s=shape), f"There is no {shape}.", "color")
    candidates = _unique(scene, _shape_of)
    if not candidates:
        return None
    item = rng.choice(candidates)
    return Question(form.format(s=item.shape), item.color, "color")


def _shape(scene: Scene, rng: random.Random) -> Question | None:
    form = rng.choice(FORMS["shape"])
    candidates = _unique(scene, _color_of)
    if not candidates:
        return None
    item = rng.choice(candidates)
    return Question(form.format(c=item.color), item.shape, "shape")


def _count(scene: Scene, rng: random.Random) -> Question | None:
    form = rng.choice(FORMS["count"])
    # Half of the time about something that is there, so that answers other than 0 are common.
    model = rng.choice(scene.items)
    present = rng.random() < 0.7
    color = model.color if present else rng.choice(list(COLORS))
    shape = model.shape if present else rng.choice(SHAPES)
    n = sum(
        ("{c}" not in form or item.color == color) and ("{p}" not in form or item.shape == shape)
        for item in scene.items
    )
    return Question(form.format(c=color, p=plural(shape)), str(n), "count")


def _position(scene: Scene, rng: random.Random) -> Question | None:
    if rng.random() < 0.1:
        color, shape = rng.choice(list(COLORS)), rng.choice(SHAPES)
        name = f"{color} {shape}"
        if name not in map(_name_of, scene.items):
            return Question(f"Where is the {name}?", f"There is no {name}.", "position")
    by_shape = rng.random() < 0.35
    candidates = _unique(scene, _shape_of if by_shape else _name_of)
    if not candidates:
        return None
    item = rng.choice(candidates)
    return Question(f"Where is the {item.shape if by_shape else item.name}?", item.place, "position")


def _place(scene: Scene, rng: random.Random) -> Question | None:
    taken = {item.cell: item for item in scene.items}
    cell = rng.choice(list(taken)) if rng.random() < 0.65 else rng.randrange(9)
    answer = with_article(taken[cell].name) if cell in taken else "nothing"
    return Question(f"What is {at(PLACES[cell])}?", answer, "place")


def _relation(scene: Scene, rng: random.Random) -> Question | None:
    candidates = _unique(scene, _name_of)
    if len(candidates) < 2:
        return None
    one, two = rng.sample(candidates, 2)
    across = rng.random() < 0.5
    if (one.column == two.column) if across else (one.row == two.row):
        return None
    before = one.column < two.column if across else one.row < two.row
    words = ("left of", "right of") if across else ("above", "below")
    word = rng.choice(words)
    right = before == (word == words[0])
    return Question(f"Is the {one.name} {word} the {two.name}?", "yes" if right else "no", "yes-no")


def _yes_no(scene: Scene, rng: random.Random) -> Question | None:
    form = rng.randrange(8)
    if form >= 4:
        return _relation(scene, rng)
    yes = rng.random() < 0.5
    model = rng.choice(scene.items)
    if form == 3:
        candidates = _unique(scene, _shape_of)
        if not candidates:
            return None
        item = rng.choice(candidates)
        color = item.color if yes else rng.choice([c for c in COLORS if c != item.color])
        return Question(f"Is the {item.shape} {color}?", "yes" if yes else "no", "yes-no")
    if form == 0:
        options = [f"{c} {s}" for c in COLORS for s in SHAPES]
        # Near misses: same colour or same shape as something that is there.
        near = [o for o in options if model.color in o or model.shape in o]
        options = near if rng.random() < 0.7 else options
        there = list(map(_name_of, scene.items))
        suffix = ""
    elif form == 1:
        options, there, suffix = list(SHAPES), list(map(_shape_of, scene.items)), ""
    else:
        options, there, suffix = list(COLORS), list(map(_color_of, scene.items)), " shape"
    absent = [o for o in options if o not in there]
    if not yes and not absent:
        return None
    thing = rng.choice(there) if yes else rng.choice(absent)
    return Question(f"Is there {with_article(thing)}{suffix}?", "yes" if yes else "no", "yes-no")


def _describe(scene: Scene, rng: random.Random) -> Question | None:
    return Question(rng.choice(DESCRIBE), description(scene), "describe")


_ASK: dict[str, Callable[[Scene, random.Random], Question | None]] = {
    "color": _color,
    "shape": _shape,
    "count": _count,
    "position": _position,
    "place": _place,
    "yes-no": _yes_no,
    "describe": _describe,
}


def ask(scene: Scene, rng: random.Random, kind: str, tries: int = 8) -> Question | None:
    """A question of this kind with a unique right answer, or None if `tries` draws found none."""
    for _ in range(tries):
        question = _ASK[kind](scene, rng)
        if question is not None:
            return question
    return None


def ask_any(scene: Scene, rng: random.Random, weights: dict[str, float]) -> Question:
    """A question of a kind drawn by weight; another kind is drawn where the scene allows none of the first."""
    while True:
        kind = rng.choices(list(weights), list(weights.values()))[0]
        question = ask(scene, rng, kind)
        if question is not None:
            return question


def ask_about_many(scenes: Sequence[Scene], rng: random.Random, weights: dict[str, float]) -> Question:
    """A question about several images of one prompt; every text names the image that it means."""
    index = rng.randrange(len(scenes))
    scene, ordinal = scenes[index], ORDINALS[index]
    draw = rng.random()
    if draw < 0.08:
        return Question("How many images are there?", str(len(scenes)), "images")
    if draw < 0.16 and len(scenes) == 2:
        total = str(sum(len(s.items) for s in scenes))
        return Question("How many shapes are in both images together?", total, "images")
    if draw < 0.24:
        return Question(f"How many shapes are in the {ordinal} image?", str(len(scene.items)), "images")
    if draw < 0.45 and len(scene.items) == 1:
        if rng.random() < 0.5:
            word = rng.choice(("color", "colour"))
            text = f"What {word} is the shape in the {ordinal} image?"
            return Question(text, scene.items[0].color, "images")
        return Question(f"What shape is in the {ordinal} image?", scene.items[0].shape, "images")
    if draw < 0.5:
        return Question(f"Describe the {ordinal} image.", description(scene), "images")
    question = ask_any(scene, rng, weights)
    if question.text in DESCRIBE:
        return Question(f"Describe the {ordinal} image.", question.answer, "images")
    text = question.text.replace(" in the image?", " there?")
    return Question(f"In the {ordinal} image, {text[0].lower()}{text[1:]}", question.answer, "images")


def off_topic(rng: random.Random) -> Question:
    """Some words that ask nothing about shapes, with the answer that says so."""
    words = [rng.choice(_WORDS) for _ in range(rng.choice((2, 4, 6, 8, 12, 20)))]
    if rng.random() < 0.3:
        words[rng.randrange(len(words))] = "".join(chr(rng.randrange(97, 123)) for _ in range(rng.randint(2, 7)))
    text = " ".join(words)
    if rng.random() < 0.7:
        text = text[0].upper() + text[1:] + rng.choice("?.!")
    return Question(text, OFF_TOPIC, "chat")


def chat(rng: random.Random, question: Question) -> Question:
    """A line sent without an image: small talk, something off topic, or `question`, which then lacks its image."""
    draw = rng.random()
    if draw < 0.6:
        text = rng.choice(list(CHAT))
        return Question(text, CHAT[text], "chat")
    return off_topic(rng) if draw < 0.8 else Question(question.text, NO_IMAGE, "chat")
