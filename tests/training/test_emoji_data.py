# SPDX-License-Identifier: Apache-2.0
"""Laws of the emoji scenes and their questions, on small drawings made here (no network)."""

from __future__ import annotations

import pickle
from collections import Counter
from random import Random

import pytest
from PIL import Image, ImageDraw

from training.data.emoji_backgrounds import background
from training.data.emoji_drawings import main_colour, open_drawing, short_code
from training.data.emoji_questions import KINDS, all_turns, is_correct, normalise, sample_turns, where
from training.data.emoji_scenes import Drawing, EmojiScenes, Placed, confusable
from training.data.emoji_words import PHRASINGS, agree, plural, with_article

THINGS = {
    "pizza": ("food and drink", "food-prepared", "orange"),
    "red apple": ("food and drink", "food-fruit", "red"),
    "pear": ("food and drink", "food-fruit", "green"),
    "dog face": ("animals and nature", "animal-mammal", "brown"),
    "dog": ("animals and nature", "animal-mammal", "gray"),
    "owl": ("animals and nature", "animal-bird", "brown"),
    "tulip": ("animals and nature", "plant-flower", "pink"),
    "car": ("travel and places", "transport-ground", "blue"),
    "house": ("travel and places", "place-building", "white"),
    "guitar": ("objects", "musical-instrument", "purple"),
    "glasses": ("objects", "clothing", "black"),
    "hammer": ("objects", "tool", "yellow"),
}


def draw(name: str, vendor: str) -> Drawing:
    """A coloured ellipse or box that stands for one vendor's drawing of a thing."""
    category, subcategory, colour = THINGS[name]
    image = Image.new("RGBA", (60, 40 if vendor == "flat" else 80))
    shape = ImageDraw.Draw(image).ellipse if vendor == "flat" else ImageDraw.Draw(image).rectangle
    shape((0, 0, image.width - 1, image.height - 1), fill=colour)
    return Drawing("0", name, category, subcategory, ["thing"], vendor, colour, image)


@pytest.fixture(scope="module")
def drawings() -> list[Drawing]:
    """Every thing of two made-up vendors."""
    return [draw(name, vendor) for vendor in ("flat", "tall") for name in THINGS]


@pytest.fixture(scope="module")
def samples(drawings: list[Drawing]) -> list[tuple]:
    """Three hundred scenes with all their questions."""
    scenes = EmojiScenes(drawings, seed=7, size=96, length=300)
    return [scenes[index] for index in range(len(scenes))]


def named(scene, text: str) -> list[Placed]:
    """The placed drawings whose name a question or an answer says."""
    said = f" {normalise(text)} "
    return [item for item in scene.objects if f" {item.drawing.name} " in said]


def centre(item: Placed) -> tuple[float, float]:
    return item.x + item.w / 2, item.y + item.h / 2


def questions(samples: list[tuple], *kinds: str):
    for scene, turns in samples:
        for turn in turns:
            if turn.kind in kinds:
                yield scene, turn


def test_boxes_lie_inside_and_apart(samples):
    for scene, _ in samples:
        assert scene.image.size == (96, 96) and scene.image.mode == "RGB"
        assert 1 <= len(scene.objects) <= 4
        for item in scene.objects:
            assert item.x >= 0 and item.x + item.w <= 96 and item.y >= 0 and item.y + item.h <= 96
            for other in scene.objects:
                apart_x = item.x + item.w <= other.x or other.x + other.w <= item.x
                apart_y = item.y + item.h <= other.y or other.y + other.h <= item.y
                assert item is other or apart_x or apart_y


def test_names_in_a_scene_can_be_told_apart(samples):
    for scene, _ in samples:
        for one in scene.objects:
            for other in scene.objects:
                same = one.drawing.name == other.drawing.name
                assert same or not confusable(one.drawing, other.drawing)
        for missing in scene.absent:
            assert not any(confusable(missing, item.drawing) for item in scene.objects)


AXES = {"left_of": (0, -1), "right_of": (0, 1), "above": (1, -1), "below": (1, 1)}


@pytest.mark.parametrize("kind", AXES)
def test_directions_are_true_and_unique(samples, kind):
    axis, sign = AXES[kind]
    asked = list(questions(samples, kind))
    assert asked
    for scene, turn in asked:
        (item,) = named(scene, turn.question)
        ahead = [o for o in scene.objects if sign * (centre(o)[axis] - centre(item)[axis]) > 0]
        assert [o.drawing.name for o in ahead] == [named(scene, turn.answer)[0].drawing.name]


def test_counts_are_true(samples):
    for scene, turn in questions(samples, "count_all"):
        assert normalise(turn.answer) == str(len(scene.objects))
    for scene, turn in questions(samples, "count_name"):
        counts = Counter(plural(item.drawing.name) for item in scene.objects)
        asked = [count for name, count in counts.items() if f" {name} " in f" {normalise(turn.question)} "]
        assert normalise(turn.answer) == str(asked[0] if asked else 0)


def test_sizes_are_true_and_clear(samples):
    for scene, turn in questions(samples, "bigger", "smaller"):
        low, high = sorted(named(scene, turn.question), key=lambda item: item.w * item.h)
        assert high.w * high.h >= 1.5 * low.w * low.h
        assert normalise(turn.answer) == (high if turn.kind == "bigger" else low).drawing.name


def test_presence_is_true_and_balanced(samples):
    answers = {kind: Counter() for kind in ("exists", "exists_category")}
    for scene, turn in questions(samples, *answers):
        answers[turn.kind][turn.answer] += 1
        if turn.kind == "exists":
            assert bool(named(scene, turn.question)) == (turn.answer == "Yes.")
    for counts in answers.values():
        assert counts["Yes."] == counts["No."] > 0


def test_size_questions_name_the_answer_first_half_of_the_time(samples):
    first = Counter()
    for _, turn in questions(samples, "bigger", "smaller"):
        answer = normalise(turn.answer)
        first[turn.question.lower().index(f"the {answer}") < turn.question.lower().index(" or ")] += 1
    assert 0.4 < first[True] / first.total() < 0.6


def test_colour_and_place_are_true(samples):
    for scene, turn in questions(samples, "colour"):
        (item,) = named(scene, turn.question)
        assert normalise(turn.answer) == item.drawing.colour
    for scene, turn in questions(samples, "where"):
        (item,) = named(scene, turn.question)
        x, y = centre(item)
        assert ("left" in turn.answer) == (x <= 0.37 * 96) and ("right" in turn.answer) == (x >= 0.63 * 96)
        assert ("top" in turn.answer) == (y <= 0.37 * 96) and ("bottom" in turn.answer) == (y >= 0.63 * 96)


def test_describe_names_everything(samples):
    for scene, turn in questions(samples, "describe"):
        counts = Counter(item.drawing.name for item in scene.objects)
        for name, count in counts.items():
            assert (plural(name) if count > 1 else with_article(name)) in turn.answer.lower()


def test_every_kind_is_reachable_and_answers_score_as_correct(samples):
    assert {turn.kind for _, turns in samples for turn in turns} == set(KINDS)
    for _, turns in samples:
        for turn in turns:
            assert normalise(turn.answer) and is_correct(turn.answer, turn.answer, turn.kind)


def test_same_seed_and_index_give_the_same_scene(drawings):
    one, two = (
        EmojiScenes(drawings, seed=3, turns=4),
        pickle.loads(pickle.dumps(EmojiScenes(drawings, 3, turns=4))),
    )
    other = EmojiScenes(drawings, seed=4, turns=4)
    for index in (0, 5, 999):
        assert one[index][0].image.tobytes() == two[index][0].image.tobytes()
        assert one[index][1] == two[index][1]
        assert one[index][0].image.tobytes() != other[index][0].image.tobytes()
    with pytest.raises(IndexError):
        one[len(one)]


def test_sampled_turns_are_different_questions(samples):
    scene = samples[0][0]
    picked = sample_turns(scene, Random(1), 3)
    assert len(picked) == 3
    assert len(sample_turns(scene, Random(1), 100)) == len(all_turns(scene, Random(1)))


def test_backgrounds_fill_the_canvas():
    for seed in range(60):
        assert background(Random(seed), 32).shape == (32, 32, 3)


def test_every_kind_has_five_phrasings():
    assert all(len(set(text.split("|"))) >= 5 for text in PHRASINGS.values())


@pytest.mark.parametrize(
    ("prediction", "answer", "kind", "expected"),
    [
        ("a dog face", "A dog face.", "name", True),
        ("the Dog Face!", "A dog face.", "name", True),
        ("a cat face", "A dog face.", "name", False),
        ("2", "Two.", "count_all", True),
        ("zero", "None.", "count_name", True),
        ("Grey", "Gray.", "colour", True),
        ("A red apple and two dog faces.", "Two dog faces and a red apple.", "describe", True),
        ("A pizza above a dog face.", "A dog face to the left of a pizza.", "describe", True),
        ("A dog face and a pear.", "Two dog faces and a pear.", "describe", False),
    ],
)
def test_scoring(prediction, answer, kind, expected):
    assert is_correct(prediction, answer, kind) is expected


@pytest.mark.parametrize(
    ("name", "one", "many"),
    [
        ("apple", "an apple", "apples"),
        ("unicorn", "a unicorn", "unicorns"),
        ("x-ray", "an x-ray", "x-rays"),
        ("hourglass", "an hourglass", "hourglasses"),
        ("glasses", "glasses", "glasses"),
        ("computer mouse", "a computer mouse", "computer mice"),
        ("face with tears of joy", "a face with tears of joy", "faces with tears of joy"),
        ("strawberry", "a strawberry", "strawberries"),
    ],
)
def test_articles_and_plurals(name, one, many):
    assert with_article(name) == one and plural(name) == many


def test_verbs_agree_with_plural_names():
    assert agree("Where is the glasses?", "glasses") == "Where are the glasses?"
    assert agree("Is there glasses?", "glasses") == "Are there glasses?"
    assert agree("What is to the left of the glasses?", "glasses") == "What is to the left of the glasses?"
    assert agree("Where is the pear?", "pear") == "Where is the pear?"


def test_colour_is_measured_from_the_pixels():
    for colour in ("red", "green", "blue", "yellow", "white", "black", "purple", "orange"):
        assert main_colour(Image.new("RGBA", (8, 8), colour)) == colour
    half = Image.new("RGBA", (8, 8), "red")
    half.paste("blue", (0, 0, 8, 4))
    assert main_colour(half) == ""
    assert main_colour(Image.new("RGBA", (8, 8))) == ""


def test_drawings_are_cropped_and_small(tmp_path):
    image = Image.new("RGBA", (300, 300))
    image.paste("red", (100, 50, 250, 100))
    image.save(tmp_path / "a.png")
    cropped = open_drawing((tmp_path / "a.png").read_bytes())
    assert cropped.size == (96, 32) and cropped.getchannel("A").getextrema() == (255, 255)
    assert short_code("2764-FE0F-200D-1F525") == "2764-200d-1f525"


def test_where_is_silent_near_a_line():
    drawing = draw("pizza", "flat")
    assert where(Placed(drawing, 0, 0, 20, 20), 100) == "at the top left"
    assert where(Placed(drawing, 40, 40, 20, 20), 100) == "in the middle"
    assert where(Placed(drawing, 30, 40, 20, 20), 100) == ""
