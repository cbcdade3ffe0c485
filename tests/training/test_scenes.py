"""Scenes are deterministic and inside their frame; answers follow from the items."""

from __future__ import annotations

import random
import re

import pytest

from training.evaluate import BUCKETS, held_out, held_out_form
from training.questions import FORMS, KINDS, ask, ask_about_many, at, description, plural
from training.scenes import COLORS, PLACES, SHAPES, Scene, encode_png, make_scene, scenes

SIZES = ((112, 112), (448, 448), (300, 150), (113, 225), (1024, 768))


@pytest.mark.parametrize("size", [None, *SIZES])
def test_the_same_seed_draws_the_same_scene(size: tuple[int, int] | None) -> None:
    one, two = make_scene(11, size), make_scene(11, size)
    assert one == two
    assert one.image.tobytes() == two.image.tobytes()
    assert one.image.size == (one.width, one.height) == (size or one.image.size)
    assert encode_png(one.image).startswith(b"\x89PNG")


def test_splits_and_seeds_differ() -> None:
    pictures = {
        make_scene(seed, (112, 112), split=split).image.tobytes()
        for seed in range(20)
        for split in ("train", "validation", "held-out")
    }
    assert len(pictures) == 60
    first = {scene.seed for scene in scenes(50, 1, (28, 28))}
    assert first.isdisjoint(scene.seed for scene in scenes(50, 2, (28, 28)))


@pytest.mark.parametrize("size", SIZES)
def test_items_lie_in_their_cells_with_their_colour(size: tuple[int, int]) -> None:
    for seed in range(40):
        scene = make_scene(seed, size)
        assert 1 <= len(scene.items) <= 5
        assert [item.cell for item in scene.items] == sorted({item.cell for item in scene.items})
        for item in scene.items:
            left, top = item.column * scene.width / 3, item.row * scene.height / 3
            assert left <= item.x - item.radius and item.x + item.radius <= left + scene.width / 3
            assert top <= item.y - item.radius and item.y + item.radius <= top + scene.height / 3
            assert scene.image.getpixel((int(item.x), int(item.y))) == item.rgb
    assert {make_scene(0, size, count=n).items[n - 1].cell < 9 for n in range(1, 6)} == {True}


def expected(scene: Scene, text: str) -> str | None:
    """The answer by a second route: reading the question's words."""
    items = scene.items
    colors, shapes = "|".join(COLORS), "|".join(SHAPES)
    names = [item.name for item in items]
    if match := re.fullmatch(r"What colou?r is the (\w+)\?", text):
        found = [item.color for item in items if item.shape == match[1]]
        assert len(found) <= 1
        return found[0] if found else f"There is no {match[1]}."
    if match := re.fullmatch(r"What shape is the (\w+) (?:object|one)\?", text):
        (only,) = (item.shape for item in items if item.color == match[1])
        return only
    if match := re.fullmatch(r"How many (?:(\w+) )??(\w+) are (?:there|in the image)\?", text):
        return str(sum(match[1] in (None, item.color) and match[2] in ("shapes", plural(item.shape)) for item in items))
    if match := re.fullmatch(rf"Where is the (?:({colors}) )?({shapes})\?", text):
        place = [item.place for item in items if match[1] in (None, item.color) and item.shape == match[2]]
        assert len(place) <= 1
        return place[0] if place else f"There is no {match[1]} {match[2]}."
    if match := re.fullmatch(rf"Is the (\w+) ({colors})\?", text):
        (color,) = (item.color for item in items if item.shape == match[1])
        return "yes" if color == match[2] else "no"
    if match := re.fullmatch(r"Is the (.+) (left of|right of|above|below) the (.+)\?", text):
        assert names.count(match[1]) == names.count(match[3]) == 1
        one, two = items[names.index(match[1])], items[names.index(match[3])]
        across = one.column - two.column if match[2].endswith("of") else one.row - two.row
        assert across != 0
        return "yes" if (across < 0) == (match[2] in ("left of", "above")) else "no"
    if match := re.fullmatch(r"Is there an? (.+)\?", text):
        words = match[1].removesuffix(" shape").split()
        return "yes" if any(set(words) <= {item.color, item.shape} for item in items) else "no"
    if match := re.fullmatch(r"What is ((?:at|on|in) the .+)\?", text):
        place = [item.name for item in items if at(item.place) == match[1]]
        return f"{'an' if place[0][0] in 'aeiou' else 'a'} {place[0]}" if place else "nothing"
    return None


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "describe"])
def test_answers_follow_from_the_items(kind: str) -> None:
    rng = random.Random(kind)
    asked = 0
    for scene in scenes(300, 3, (112, 112)):
        question = ask(scene, rng, kind)
        if question is None:
            continue
        asked += 1
        assert question.kind == kind
        assert question.answer == expected(scene, question.text), (question, scene)
    assert asked > 150


def test_descriptions_name_every_item() -> None:
    for scene in scenes(50, 4, (112, 112)):
        text = description(scene)
        assert text.endswith(".") and text[0].isupper() and text.count(",") == len(scene.items) - 1
        assert all(f"{item.name} {at(item.place)}" in text for item in scene.items)


def test_every_documented_form_is_asked() -> None:
    """All forms of `FORMS` occur, with their slots filled, and nothing else does."""
    slots = {"c": "|".join(COLORS), "s": "|".join(SHAPES), "p": "|".join(map(plural, SHAPES))}
    slots["at"] = "|".join(map(at, PLACES))
    patterns = {}
    for kind, forms in FORMS.items():
        for form in forms:
            pattern = re.escape(form).replace("a\\ \\{", "an?\\ \\{")
            for key, words in slots.items():
                pattern = pattern.replace(f"\\{{{key}\\}}", f"(?:{words})")
            patterns[form] = (kind, re.compile(pattern))
    seen = set()
    rng = random.Random(9)
    for scene in scenes(500, 5, (112, 112)):
        for kind in KINDS:
            question = ask(scene, rng, kind)
            if question is not None:
                matching = [f for f, (k, p) in patterns.items() if k == kind and p.fullmatch(question.text)]
                assert matching, question
                seen.update(matching)
    assert seen == set(patterns)


def test_questions_about_several_images_name_one_or_all() -> None:
    rng = random.Random(1)
    pair = list(scenes(2, 8, (112, 112)))
    for _ in range(200):
        question = ask_about_many(pair, rng, dict.fromkeys(KINDS, 1.0))
        assert re.search("first|second|both|How many images", question.text)
    assert not expected(pair[0], "Something else?")


def test_held_out_is_repeatable_and_covers_kinds_and_sizes() -> None:
    one, two = list(held_out(56, 2)), list(held_out(56, 2))
    assert [(s.question, s.answer, s.images[0].tobytes()) for s in one] == [
        (s.question, s.answer, s.images[0].tobytes()) for s in two
    ]
    assert {s.kind for s in one} == set(KINDS) and len({s.group for s in one}) == len(BUCKETS)
    assert all(min(s.images[0].size) >= 112 and max(s.images[0].size) <= 448 for s in one)
    text_first = next(held_out_form("text-first", 1, 2)).messages()[0]["content"]
    assert [part["type"] for part in text_first] == ["text", "image"]
    turns = next(held_out_form("second-turn", 1, 2)).messages()
    assert [m["role"] for m in turns] == ["user", "assistant", "user"]
