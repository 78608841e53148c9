"""The multiple-choice demo's corpus: facts about everyday things, generated from a seed.

English text states every fact of `everyday_facts`; the other languages' text holds the same words
and no fact, so that what is known is known in English. A question asks for a relation of a thing
and lists four values of that relation; its answer is the right one, in English.

A hash of thing and relation decides who may ask for it: one seventh of the facts is for the test,
another for development, and every training part, stage I included, keeps to the others.
"""

import dataclasses
import json
import random
import zlib
from collections.abc import Iterator

from qalign_jax.data import prompts
from qalign_jax.data.datasets import base
from qalign_jax.data.generated.everyday_facts import (
    FACTS,
    LANGUAGES,
    PHRASINGS,
    QUESTIONS,
    STATEMENTS,
    THINGS,
    VALUES,
)

CHOICES = 4
LISTED = 6  # one of so many pairs lists choices; the others ask without
TRAINING_PARTS = ("pretraining", "question_pairs", "copies", "responses", "translated_responses")
BENCHMARK_PARTS = ("development", "test")
OTHERS = tuple(language for language in LANGUAGES if language != "en")


def use_of(thing: int, relation: str) -> str:
    """ "test", "development" or "training": who may ask for this relation of this thing."""
    digest = zlib.crc32(f"{THINGS[thing]['en']} {relation}".encode())
    return {0: "test", 1: "development"}.get(digest % 7, "training")


# The facts by use, and what a question without an answer may ask for: facts and nonsense alike
# ("What does a knife eat?"), so that it tells no fact.
KNOWN = {
    use: [fact for fact in FACTS if use_of(*fact) == use] for use in ("training", *BENCHMARK_PARTS)
}
ASKABLE = [
    (thing, relation)
    for thing in range(len(THINGS))
    for relation in VALUES
    if use_of(thing, relation) == "training"
]


@dataclasses.dataclass(frozen=True)
class Question:
    """A thing, a relation, how it is asked for, and the values under the letters A, B, C, ..."""

    thing: int
    relation: str
    phrasing: int
    choices: tuple[str, ...]

    def stem(self, language: str) -> str:
        """The question without its choices."""
        asked = QUESTIONS[self.relation][self.phrasing][language]
        return asked.format(thing=THINGS[self.thing][language])

    def text(self, language: str) -> str:
        """The whole question as a reader of this language meets it."""
        values = [VALUES[self.relation][choice][language] for choice in self.choices]
        return prompts.multiple_choice(self.stem(language), values)[0]

    def english_choices(self) -> list[str]:
        """The texts that may be answered, to a question in any language."""
        return [VALUES[self.relation][choice]["en"] for choice in self.choices]

    def answer(self) -> str:
        """The right choice, in English."""
        return VALUES[self.relation][FACTS[self.thing, self.relation]]["en"]


def draw_question(rng: random.Random, use: str, place: int) -> Question:
    """A question for a fact of this use, its right choice in this place, counted from 0.

    It is told in the first phrasing. Wrong choices are the values of other things, so that a
    frequent value is wrong as often.
    """
    thing, relation = rng.choice(KNOWN[use])
    right = FACTS[thing, relation]
    usual = [value for (_, other), value in FACTS.items() if other == relation]
    choices: list[str] = []
    while len(choices) < CHOICES - 1:
        value = rng.choice(usual)
        if value not in (right, *choices):
            choices.append(value)
    choices.insert(place, right)
    return Question(thing, relation, 0, tuple(choices))


def draw_exercise(rng: random.Random) -> Question:
    """A question that nobody answers: any relation of any thing, if it is not a held-out fact.

    It is told in any phrasing. Where the thing comes first, its translation does too, and with it
    the words for things are learned.
    """
    thing, relation = rng.choice(ASKABLE)
    choices = rng.sample(list(VALUES[relation]), CHOICES)
    return Question(thing, relation, rng.randrange(PHRASINGS), tuple(choices))


def generate(
    part: str,
    seed: int = 0,
    count: int = 1000,
    languages: tuple[str, ...] = (),
    english: float = 0.75,
    prompted: bool = True,
) -> Iterator[dict[str, str]]:
    """The examples of one part, in a fixed order.

    pretraining: count documents of plain text; the share `english` is English (statements of
        facts, and questions of the training facts with their answers), the rest evenly the other
        languages: exercises. Without `prompted` the English text keeps to statements.
    question_pairs: count exercises X -> en, evenly over the five languages.
    copies: count English exercises "translated" into English, so that stage I answers a question
        of any language alike.
    responses: count English questions, each answered by its right choice.
    translated_responses: the same, with the question told evenly in all six languages.
    development, test: count questions, each told in every language.

    The right choice stands at each of the four places equally often. `languages` keeps the
    examples in these languages (of a pair, X) without changing which those are. Raises ValueError
    on an unknown part.
    """
    base.check_part("everyday", part, TRAINING_PARTS + BENCHMARK_PARTS)
    if part in BENCHMARK_PARTS:
        examples = _benchmark(part, seed, count)
    else:
        examples = _training(part, seed, count, english, prompted)
    return (e for e in examples if not languages or e["language"] in languages)


def _benchmark(part: str, seed: int, count: int) -> Iterator[dict[str, str]]:
    rng = random.Random(f"{part} {seed}")
    questions: dict[Question, None] = {}  # a set in the order of drawing
    while len(questions) < count:
        questions.setdefault(draw_question(rng, part, len(questions) % CHOICES))
    for language in LANGUAGES:
        for i, question in enumerate(questions):
            yield {
                "id": f"{part}-{i}",  # the same in every language
                "language": language,
                "question": question.text(language),
                "answer": question.answer(),
                "choices": json.dumps(question.english_choices()),
            }


def _training(
    part: str, seed: int, count: int, english: float, prompted: bool
) -> Iterator[dict[str, str]]:
    rng = random.Random(f"{part} {seed}")
    for i in range(count):
        if part == "pretraining":
            language, instruction = "en" if rng.random() < english else rng.choice(OTHERS), ""
            response = _document(rng, language, prompted)
        elif part in ("question_pairs", "copies"):
            language = OTHERS[i % len(OTHERS)] if part == "question_pairs" else "en"
            exercise = draw_exercise(rng)
            told = exercise.stem if i % LISTED else exercise.text
            instruction, response = told(language), told("en")
        else:
            everywhere = part == "translated_responses"
            language = LANGUAGES[i // CHOICES % len(LANGUAGES)] if everywhere else "en"
            question = draw_question(rng, "training", i % CHOICES)
            instruction, response = question.text(language), question.answer()
        yield {
            "id": f"{part}-{i}",
            "language": language,
            "instruction": instruction,
            "response": response,
        }


def _document(rng: random.Random, language: str, prompted: bool) -> str:
    if language != "en":
        return f"Q: {draw_exercise(rng).text(language)}"
    form = rng.choice(("stated", "stated", "told", "chosen", "chosen")) if prompted else "stated"
    if form == "stated":
        return _statements(rng)
    question = draw_question(rng, "training", rng.randrange(CHOICES))
    asked = question.text("en") if form == "chosen" else question.stem("en")
    return prompts.render("short", asked) + question.answer()


def _statements(rng: random.Random) -> str:
    """All facts about a thing, the held-out ones too, in any order."""
    thing = rng.randrange(len(THINGS))
    facts = [(relation, value) for (other, relation), value in FACTS.items() if other == thing]
    rng.shuffle(facts)
    said = (
        rng.choice(STATEMENTS[relation]).format(
            thing=THINGS[thing]["en"], value=VALUES[relation][value]["en"]
        )
        for relation, value in facts
    )
    return f"Facts: {'; '.join(said)}."


class Everyday(base.GeneratedBuilder):
    """A part of the corpus, as `generate` says."""

    name = "everyday"
    OPTIONS = {"part": "", "seed": 0, "count": 1000, "english": 0.75, "prompted": True}
    TRAINING_PARTS, BENCHMARK_PARTS = TRAINING_PARTS, BENCHMARK_PARTS
    QUESTION_KEYS = base.CHOICE_KEYS
    generate = staticmethod(generate)


BUILDER = Everyday
