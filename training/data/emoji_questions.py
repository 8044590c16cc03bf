# SPDX-License-Identifier: Apache-2.0
"""Natural questions about a scene, answers that are true of its boxes, and how answers are scored."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from random import Random
from typing import TYPE_CHECKING

from training.data.emoji_words import (
    COLOUR_WORDS,
    NUMBERS,
    PHRASINGS,
    agree,
    countable,
    doubts_noun,
    noun_of,
    plural,
    with_article,
)

if TYPE_CHECKING:
    from training.data.emoji_scenes import Drawing, Placed, Scene

KINDS = tuple(PHRASINGS)
DIRECTIONS = ("left_of", "right_of", "above", "below")
# How often a kind is drawn, against 1 for the others: recognition is what everything else rests on.
WEIGHTS = {"name": 4, "describe": 3, "exists": 2}

Fact = tuple[str, dict[str, str], str]


@dataclass(frozen=True)
class Turn:
    """One question and the answer that is true of the scene."""

    kind: str
    question: str
    answer: str


def all_turns(scene: Scene, rng: Random) -> list[Turn]:
    """Every question that can be asked of the scene, each in one sampled phrasing."""
    facts = [*_one_thing(scene, rng), *_presence(scene, rng), *_counts(scene, rng)]
    facts += [*_relations(scene), *_sizes(scene, rng), *_looks(scene, rng)]
    facts.append(("describe", {}, describe(scene.objects)))
    return [Turn(kind, _phrase(kind, fill, rng), _sentence(answer)) for kind, fill, answer in facts]


def sample_turns(scene: Scene, rng: Random, n: int) -> list[Turn]:
    """Up to `n` different questions: the kind is drawn first, so that no kind drowns the others."""
    left, picked = all_turns(scene, rng), []
    while left and len(picked) < n:
        kinds = sorted({turn.kind for turn in left})
        kind = rng.choices(kinds, [WEIGHTS.get(kind, 1) for kind in kinds])[0]
        turn = rng.choice([turn for turn in left if turn.kind == kind])
        left.remove(turn)
        picked.append(turn)
    return picked


def _one_thing(scene: Scene, rng: Random) -> Iterator[Fact]:
    if len(scene.objects) == 1:
        drawing = scene.objects[0].drawing
        yield "name", {}, with_article(drawing.name)
        yield "category", {}, drawing.category


def _presence(scene: Scene, rng: Random) -> Iterator[Fact]:
    """Always a yes with its no, over the same words in the long run: the question alone tells nothing."""
    present = [item.drawing for item in scene.objects]
    if scene.absent:
        missing = scene.absent[0] if rng.random() < 0.5 else scene.absent[-1]
        yield "exists", _named(rng.choice(present).name), "yes"
        yield "exists", _named(missing.name), "no"
    noun = noun_of(rng.choice(present))
    other = _absent_noun(scene, present)
    if noun and other:
        yield "exists_category", {"it": noun, "one": with_article(noun)}, "yes"
        yield "exists_category", {"it": other, "one": with_article(other)}, "no"


def _absent_noun(scene: Scene, present: list[Drawing]) -> str:
    for noun in map(noun_of, scene.absent):
        if noun and not any(noun_of(drawing) == noun or doubts_noun(drawing, noun) for drawing in present):
            return noun
    return ""


def _counts(scene: Scene, rng: Random) -> Iterator[Fact]:
    total = len(scene.objects)
    if total > 1 or rng.random() < 0.5:
        yield "count_all", {}, NUMBERS[total]
    counts = Counter(item.drawing.name for item in scene.objects)
    for name, count in counts.items():
        if countable(name) and (count > 1 or rng.random() < 0.15):
            yield "count_name", _named(name), NUMBERS[count]
    if scene.absent and countable(scene.absent[0].name) and rng.random() < 0.05:
        yield "count_name", _named(scene.absent[0].name), NUMBERS[0]


def _single(scene: Scene) -> list[Placed]:
    counts = Counter(item.drawing.name for item in scene.objects)
    return [item for item in scene.objects if counts[item.drawing.name] == 1]


def _relations(scene: Scene) -> Iterator[Fact]:
    for item in _single(scene):
        for kind in DIRECTIONS:
            found = neighbour(scene.objects, item, kind)
            if found:
                yield kind, _named(item.drawing.name), with_article(found.drawing.name)
        found = nearest(scene.objects, item)
        if found:
            yield "next_to", _named(item.drawing.name), with_article(found.drawing.name)


def neighbour(objects: list[Placed], item: Placed, kind: str) -> Placed | None:
    """The one object that lies in a direction of `item`, or None when that is not clear.

    It must be the only one whose centre lies further in that direction at all; its box must end before
    the box of `item` begins; and it must not lie much more across than along: along >= 0.6 * across.
    """
    ahead = [other for other in objects if other is not item and _offset(item, other, kind)[0] > 0]
    if len(ahead) != 1:
        return None
    along, across, gap = _offset(item, ahead[0], kind)
    return ahead[0] if gap >= 0 and along >= 0.6 * across else None


def _offset(item: Placed, other: Placed, kind: str) -> tuple[float, float, float]:
    """Distance of the centres along and across a direction, and the gap of the boxes along it."""
    dx = other.x + other.w / 2 - item.x - item.w / 2
    dy = other.y + other.h / 2 - item.y - item.h / 2
    along, across = (dx, dy) if kind in ("left_of", "right_of") else (dy, dx)
    reach = (item.w + other.w) / 2 if kind in ("left_of", "right_of") else (item.h + other.h) / 2
    sign = -1 if kind in ("left_of", "above") else 1
    return sign * along, abs(across), sign * along - reach


def nearest(objects: list[Placed], item: Placed) -> Placed | None:
    """The only other object, or one whose gap to `item` is at most half of every other gap."""
    others = sorted((other for other in objects if other is not item), key=lambda other: _gap(item, other))
    if len(others) < 2:
        return others[0] if others else None
    return others[0] if 2 * _gap(item, others[0]) <= _gap(item, others[1]) else None


def _gap(one: Placed, other: Placed) -> float:
    across = max(one.x, other.x) - min(one.x + one.w, other.x + other.w)
    down = max(one.y, other.y) - min(one.y + one.h, other.y + other.h)
    return (max(0, across) ** 2 + max(0, down) ** 2) ** 0.5


def _sizes(scene: Scene, rng: Random) -> Iterator[Fact]:
    for pair in combinations(_single(scene), 2):
        small, big = sorted(pair, key=lambda item: item.w * item.h)
        if big.w * big.h >= 1.5 * small.w * small.h:
            for kind, answer in (("bigger", big), ("smaller", small)):
                first, second = rng.sample(pair, 2)
                them = f"the {first.drawing.name} or the {second.drawing.name}"
                yield kind, {"them": them}, f"the {answer.drawing.name}"


def _looks(scene: Scene, rng: Random) -> Iterator[Fact]:
    size = scene.image.width
    for item in _single(scene):
        drawing, spot = item.drawing, where(item, size)
        if drawing.colour and not COLOUR_WORDS & drawing.words:
            yield "colour", _named(drawing.name), drawing.colour
        if spot and (spot != "in the middle" or rng.random() < 0.25):
            yield "where", _named(drawing.name), spot


def where(item: Placed, size: int) -> str:
    """The third of the picture that holds the centre, or "" when it is near the line between two thirds."""
    across = _third((item.x + item.w / 2) / size, ("left", "", "right"))
    down = _third((item.y + item.h / 2) / size, ("top", "", "bottom"))
    if across is None or down is None:
        return ""
    if not down:
        return f"on the {across}" if across else "in the middle"
    return f"at the {down} {across}".rstrip()


def _third(centre: float, words: tuple[str, str, str]) -> str | None:
    for word, low, high in zip(words, (0, 0.42, 0.63), (0.37, 0.58, 1), strict=True):
        if low <= centre <= high:
            return word
    return None


def describe(objects: list[Placed]) -> str:
    """One sentence: how two things lie to each other, or what there is, from left to right."""
    ordered = sorted(objects, key=lambda item: item.x + item.w / 2)
    counts = Counter(item.drawing.name for item in ordered)
    if len(objects) == 2 and len(counts) == 2:
        for kind, words in (("left_of", "to the left of"), ("above", "above")):
            for item, other in (ordered, ordered[::-1]):
                if neighbour(objects, other, kind) is item:
                    return f"{with_article(item.drawing.name)} {words} {with_article(other.drawing.name)}"
    parts = [with_article(n) if k == 1 else f"{NUMBERS[k]} {plural(n)}" for n, k in counts.items()]
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def _named(name: str) -> dict[str, str]:
    return {"it": name, "one": with_article(name), "many": plural(name)}


def _phrase(kind: str, fill: dict[str, str], rng: Random) -> str:
    text = rng.choice(PHRASINGS[kind].split("|")).format(**fill)
    text = agree(text, fill.get("it", ""))
    chance = rng.random()
    if chance < 0.06:
        return text.lower().rstrip("?.")
    if chance < 0.1:
        return "Please " + text[0].lower() + text[1:] if text.endswith(".") else text[:-1] + ", please?"
    return text.lower() if chance < 0.13 else text


def _sentence(answer: str) -> str:
    return answer[0].upper() + answer[1:] + "."


def normalise(answer: str) -> str:
    """Lower case, no articles, no punctuation at the ends, digits for number words, one spelling of gray."""
    words = [word.strip(".,!?;:\"'") for word in answer.lower().replace("grey", "gray").split()]
    digits = {word: str(number) for number, word in enumerate(NUMBERS)} | {"zero": "0"}
    return " ".join(digits.get(word, word) for word in words if word and word not in ("a", "an", "the"))


def is_correct(prediction: str, answer: str, kind: str) -> bool:
    """Equal once normalised; a description needs only all that the answer names, with its counts."""
    said = normalise(prediction)
    if kind != "describe":
        return said == normalise(answer)
    parts = re.split(r", | and | to the left of | above ", answer.rstrip("."))
    return all(f" {normalise(part)} " in f" {said} " for part in parts)
