# SPDX-License-Identifier: Apache-2.0
"""The words of the questions: phrasings, nouns for whole groups of things, articles and plurals."""

from __future__ import annotations

import fnmatch
import functools
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.data.emoji_scenes import Drawing

COLOUR_WORDS = frozenset(
    ("black", "gray", "grey", "white", "brown", "red", "orange", "yellow", "green", "blue", "purple", "pink")
)
# {one} = "a pizza", {it} = "pizza", {many} = "pizzas", {them} = "the pizza or the dog" in either order
PHRASINGS = {
    "name": "What is this?|What do you see?|What's in the picture?|Name this thing.|What does it show?|"
    "Can you tell me what this is?|Which thing is this?|What am I looking at?",
    "category": "What kind of thing is this?|Which category does it belong to?|What category is this?|"
    "What sort of thing is it?|Under which category would you file this?|Which group does this belong to?",
    "exists": "Is there {one}?|Is there {one} in the picture?|Do you see {one}?|Can you see {one} here?|"
    "Does the picture show {one}?|Is there {one} anywhere?|Does the image contain {one}?",
    "exists_category": "Is there {one} in the picture?|Is there any {it} here?|Do you see {one}?|"
    "Does the picture show {one}?|Can you find {one} here?|Does the image contain {one}?",
    "count_all": "How many things are there?|How many objects do you see?|Count the things in the picture.|"
    "How many things are in the picture?|How many items does the image show?|What is the number of objects?",
    "count_name": "How many {many} are there?|How many {many} do you see?|Count the {many}.|"
    "How many {many} are in the picture?|What is the number of {many}?|How many {many} can you find?",
    "left_of": "What is to the left of the {it}?|What's on the left of the {it}?|What is left of the {it}?|"
    "Which thing is to the left of the {it}?|What do you see to the left of the {it}?",
    "right_of": "What is to the right of the {it}?|What's on the right of the {it}?|"
    "What is right of the {it}?|Which thing is to the right of the {it}?|"
    "What do you see to the right of the {it}?",
    "above": "What is above the {it}?|What's above the {it}?|What is over the {it}?|"
    "Which thing is above the {it}?|What do you see above the {it}?",
    "below": "What is below the {it}?|What's below the {it}?|What is under the {it}?|"
    "Which thing is below the {it}?|What do you see below the {it}?|What is beneath the {it}?",
    "next_to": "What is next to the {it}?|What's next to the {it}?|What is beside the {it}?|"
    "Which thing is next to the {it}?|What is closest to the {it}?|What do you see near the {it}?",
    "bigger": "Which is bigger, {them}?|Which one is larger, {them}?|What is bigger: {them}?|"
    "Which of the two is bigger, {them}?|Tell me which is larger, {them}.",
    "smaller": "Which is smaller, {them}?|Which one is smaller, {them}?|What is smaller: {them}?|"
    "Which of the two is smaller, {them}?|Tell me which is smaller, {them}.",
    "colour": "What colour is the {it}?|What color is the {it}?|Which colour is the {it}?|"
    "Which color does the {it} have?|What is the colour of the {it}?|Tell me the color of the {it}.",
    "where": "Where is the {it}?|Where in the picture is the {it}?|Whereabouts is the {it}?|"
    "In which part of the picture is the {it}?|Where do you see the {it}?|Can you tell me where the {it} is?",
    "describe": "Describe the picture.|Describe this image.|What is in the picture?|Tell me what you see.|"
    "Give a short description of the image.|What does this image show?|Write a caption for this picture.",
}
NUMBERS = ("none", "one", "two", "three", "four", "five", "six")

# What a whole subcategory may be called; a trailing * stands for any ending.
NOUNS = {
    "animal": "animal-* monkey-face cat-face",
    "plant": "plant-*",
    "heart": "heart",
    "fruit": "food-fruit",
    "vegetable": "food-vegetable",
    "drink": "drink",
    "building": "place-building place-religious",
    "musical instrument": "musical-instrument",
    "piece of clothing": "clothing",
    "tool": "tool",
    "shape": "geometric",
    "vehicle": "transport-*",
}
# Nobody could say for sure whether these show the noun, so they rule the question out.
DOUBTFUL = {
    "animal": "face-costume game place-other food-asian food-prepared arts",
    "plant": "event food-fruit food-vegetable face-costume place-geographic food-asian emotion",
    "heart": "face-affection game animal-* cat-face body-parts",
    "fruit": "food-* drink plant-*",
    "vegetable": "food-* plant-*",
    "drink": "food-* dishware hotel place-map science medical household",
    "building": "place-* transport-* money",
    "musical instrument": "sound music event",
    "piece of clothing": "sport face-hat face-glasses face-costume medical tool",
    "tool": "office writing household science dishware sport lock light* other-object hotel medical",
    "vehicle": "sport place-other game household light* music",
    "shape": "heart game emotion sky* award-medal",
}
# Of a group above by their table, but not by everybody's eye: never a reason for "yes" or "no".
_UNSURE = """
paw prints; feather; spider web; wing; microbe; piece of coral; seashell; pig nose; gem; ring; lipstick
prayer beads; shopping bags; purse; handbag; crown; clutch bag; backpack; folding hand fan; hair pick
brick; rock; log of wood; derelict house; construction site; stadium; barber pole; bus stop; motorway
railway track; oil drum; gas pump; wheel; siren light; traffic light; stop sign; construction barrier
anchor; ring buoy; seat; satellite; parachute; skateboard; roller skate; manual wheelchair
motorized wheelchair; flying saucer; ice cube; empty nest; nest with eggs; mushroom; heart decoration
love letter; kiss mark; diamond suit; coffin
"""
UNSURE = frozenset(re.split(r"; |\n", _UNSURE.strip()))

PLURALS = re.compile(
    r"\b(glasses|sunglasses|goggles|jeans|shorts|briefs|scissors|chopsticks|skis|gloves|socks|fries|pancakes|"
    r"cherries|grapes|blueberries|peanuts|beans|chains|maracas|masks|beads|bags|bubbles|swords|hearts|prints|"
    r"notes|sparkles|dolls|shoes|droplets|knobs|springs|mugs|frames|cards|headphones)$"
)
UNCOUNTABLE = frozenset(("oden", "mount fuji", "tokyo tower", "statue of liberty", "kaaba", "milky way"))
IRREGULAR = {"mouse": "mice", "goose": "geese", "leaf": "leaves", "knife": "knives", "wolf": "wolves"}
IRREGULAR |= {"loaf": "loaves", "sheaf": "sheaves", "die": "dice", "potato": "potatoes", "tomato": "tomatoes"}
IRREGULAR |= {"volcano": "volcanoes", "tornado": "tornadoes", "mango": "mangoes", "mosquito": "mosquitoes"}
UNCHANGED = frozenset(("fish", "blowfish", "jellyfish", "sheep", "deer", "moose", "squid", "shrimp"))
HEAD_END = re.compile(r" (?:with|without|of|in|on|behind|pointing|blowing|holding|licking) ")


def is_plural(name: str) -> bool:
    """Whether the name is already a plural, such as "glasses"."""
    return bool(PLURALS.search(HEAD_END.split(name, maxsplit=1)[0]))


def countable(name: str) -> bool:
    """Whether "two ..." can be said of the name."""
    return not is_plural(name) and name not in UNCOUNTABLE and " and " not in name


def with_article(name: str) -> str:
    """ "a pizza", "an apple", "glasses"."""
    if is_plural(name) or name in UNCOUNTABLE:
        return name
    vowel = re.match(r"(?!uni|euro|one)[aeiou]|hour|x-ray", name)
    return f"{'an' if vowel else 'a'} {name}"


def plural(name: str) -> str:
    """ "dog faces", "faces with tears of joy", "mice"."""
    end = HEAD_END.search(name)
    head, rest = (name[: end.start()], name[end.start() :]) if end else (name, "")
    if not countable(name):
        return name
    *before, last = head.split(" ")
    return " ".join([*before, _plural_word(last)]) + rest


def _plural_word(word: str) -> str:
    if word in UNCHANGED:
        return word
    if word in IRREGULAR:
        return IRREGULAR[word]
    if word.endswith("man"):
        return word[:-3] + "men"
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + ("es" if re.search(r"(s|x|z|ch|sh)$", word) else "s")


def agree(question: str, name: str) -> str:
    """The question with its verb in the plural where the name is one: "Where are the glasses?"."""
    if not name or not is_plural(name):
        return question
    for one, many in (
        ("is there", "are there"),
        ("Is there", "Are there"),
        ("does the", "do the"),
        ("is the", "are the"),
    ):
        question = question.replace(f"{one} {name}", f"{many} {name}")
    return question.replace(f"the {name} is", f"the {name} are")


def noun_of(drawing: Drawing) -> str:
    """The noun for the whole group a drawing belongs to, such as "animal", or "" where there is none."""
    if drawing.name in UNSURE:
        return ""
    return next((noun for noun, groups in NOUNS.items() if _among(drawing.subcategory, groups)), "")


def doubts_noun(drawing: Drawing, noun: str) -> bool:
    """Whether some would call the drawing by the noun although it is not of that group."""
    return drawing.name in UNSURE or _among(drawing.subcategory, DOUBTFUL[noun])


@functools.cache
def _among(subcategory: str, groups: str) -> bool:
    return any(fnmatch.fnmatch(subcategory, group) for group in groups.split())
