"""The demo's corpus: word problems of one to three steps in six languages, generated from a seed.

A problem is a language-free frame (a start, one or two events, perhaps an equal share) with a
person, a thing and a choice of phrasings; it can be told in every language of
`word_problems_templates`. Its answer is an English chain of thought; in the parts whose names
begin with code_ it is a program in the format of OpenMathInstruct-1.

A hash of a frame's numbers decides where the frame may be used: one tenth is for the test, another
for development, and everything else, the tokenizer's text included, keeps to the other eight. The
hash sees the numbers alone, so that no phase meets a test problem's numbers with other events
either.
"""

import dataclasses
import random
import zlib
from collections.abc import Iterator, Sequence

from qalign_jax.data import prompts
from qalign_jax.data.datasets import base
from qalign_jax.data.generated.word_problem_templates import ASIDE, LANGUAGES, PHRASINGS, Language

LARGEST = 25  # of all values, given and computed
GAINS = ("buy", "find", "receive", "win")
LOSSES = ("give", "lose", "sell", "steal")
# Of a frame: (numbers at the start, events, whether it ends in a share), and how often. Two events
# come most often because the numbers alone say least about their signs.
SHAPES = {
    (1, 1, False): 2,
    (1, 2, False): 12,
    (2, 1, False): 3,
    (1, 2, True): 1,
    (2, 1, True): 1,
}
TRAINING_PARTS = (
    "pretraining", "question_pairs", "reversed_pairs", "copies", "responses",
    "translated_responses", "native_responses", "control", "code_pretraining", "code_responses",
)  # fmt: skip
CODE = "code_"  # begins the parts whose worked solutions are programs
BENCHMARK_PARTS = ("development", "test", "development_aside", "test_aside")
OTHERS = tuple(language for language in LANGUAGES if language != "en")


@dataclasses.dataclass(frozen=True)
class Frame:
    """start is (n,) for "has n", (a, b) for "a bags of b"; share 0 where nothing is shared."""

    start: tuple[int, ...]
    events: tuple[tuple[str, int], ...]
    share: int

    def numbers(self) -> tuple[int, ...]:
        """The numbers in the order in which the problem tells them."""
        shared = (self.share,) if self.share else ()
        return self.start + tuple(n for _, n in self.events) + shared

    def steps(self) -> list[tuple[int, str, int, int]]:
        """(left, operation, right, value) a step; the value of a division is rounded down."""
        value, steps = self.start[0], []
        if len(self.start) == 2:
            steps.append((value, "*", self.start[1], value * self.start[1]))
            value *= self.start[1]
        for kind, n in self.events:
            after = value + n if kind in GAINS else value - n
            steps.append((value, "+" if kind in GAINS else "-", n, after))
            value = after
        if self.share:
            steps.append((value, "/", self.share, value // self.share))
        return steps

    def is_sound(self) -> bool:
        """Whether every value lies in 2..LARGEST and the share comes out even."""
        steps = self.steps()
        uneven = self.share and steps[-1][0] % self.share
        return not uneven and all(2 <= value <= LARGEST for *_, value in steps)


def tenth(numbers: Sequence[int]) -> str:
    """ "test", "development" or "training": who may use a frame of these numbers."""
    digest = zlib.crc32(" ".join(map(str, numbers)).encode())
    return {0: "test", 1: "development"}.get(digest % 10, "training")


def draw_frame(rng: random.Random, use: str) -> Frame:
    """A sound frame of the given tenth (see `tenth`)."""
    [(given, events, shared)] = rng.choices(list(SHAPES), list(SHAPES.values()))
    while True:
        bags = (rng.randint(2, 4), rng.randint(2, 5))
        frame = Frame(
            start=bags if given == 2 else (rng.randint(7, 15),),
            events=tuple((rng.choice(GAINS + LOSSES), rng.randint(2, 5)) for _ in range(events)),
            share=rng.randint(2, 4) if shared else 0,
        )
        if frame.is_sound() and tenth(frame.numbers()) == use:
            return frame


@dataclasses.dataclass(frozen=True)
class Problem:
    """A frame and how to tell it: indices into a `Language`, a phrasing for each sentence."""

    frame: Frame
    person: int
    thing: int
    phrasings: tuple[int, ...]

    def story(self, language: str) -> list[str]:
        """The sentences before the question."""
        frame, told = self.frame, LANGUAGES[language]
        if len(frame.start) == 2:
            start = ("bags", {"a": frame.start[0], "b": frame.start[1]})
        else:
            start = ("has", {"n": frame.start[0]})
        kinds = [start, *((kind, {"n": n}) for kind, n in frame.events)]
        if frame.share:
            kinds.append(("share", {"n": frame.share}))
        return [
            self._say(told, kind, phrasing, numbers)
            for (kind, numbers), phrasing in zip(kinds, self.phrasings, strict=False)
        ]

    def question(self, language: str) -> str:
        """The whole problem as a reader of this language meets it."""
        told = LANGUAGES[language]
        kind = "how_many_each" if self.frame.share else "how_many"
        asked = self._say(told, kind, self.phrasings[-1], {})
        return told.space.join([*self.story(language), asked])

    def retold(self, language: str, phrasings: tuple[int, ...]) -> str:
        """The problem, and once more in other phrasings."""
        other = dataclasses.replace(self, phrasings=phrasings)
        asked = LANGUAGES[language].space.join([self.question(language), LANGUAGES[language].again])
        return prompts.render("short", asked) + other.question(language)

    def computed(self) -> str:
        """The equations alone."""
        return " ".join(f"{equation}." for equation in self._equations())

    def solved(self, language: str = "en") -> str:
        """The story, each sentence that calls for an equation followed by it."""
        story, told, equations = self.story(language), LANGUAGES[language], self._equations()
        given = len(story) - len(equations)  # "has n" calls for none
        solved = [
            sentence.removesuffix(told.stop) + told.so + equation + told.stop
            for sentence, equation in zip(story[given:], equations, strict=True)
        ]
        return told.space.join([*story[:given], *solved])

    def answer(self, language: str = "en") -> str:
        """The chain of thought, in the first phrasings, and the answer."""
        told = LANGUAGES[language]
        last = told.answer.format(n=self.result())
        return told.space.join([self._plain().solved(language), last])

    def result(self) -> int:
        return self.frame.steps()[-1][-1]

    def _equations(self) -> list[str]:
        return ["{} {} {} = {}".format(*step) for step in self.frame.steps()]

    def _plain(self):
        """The problem in the first phrasings."""
        return dataclasses.replace(self, phrasings=(0,) * len(self.phrasings))

    def _forms(self, told: Language) -> dict[str, str]:
        gender = told.pronouns[self.person % 2]
        return {"name": told.names[self.person], **gender, **told.things[self.thing]}

    def _say(self, told: Language, kind: str, phrasing: int, numbers: dict[str, int]) -> str:
        return told.sentences[kind][phrasing].format(**numbers, **self._forms(told))


class CodeProblem(Problem):
    """A problem that is solved by a program, in the format of OpenMathInstruct-1.

    The text between `</llm-code>` and the end of the output is what an evaluation puts there.
    """

    def computed(self) -> str:
        """The program and its output."""
        thing, start = LANGUAGES["en"].things[self.thing]["things"], self.frame.start
        lines = [f"{thing} = {' * '.join(map(str, start))}"]
        for _, sign, n, _ in self.frame.steps()[len(start) - 1 :]:  # the first line multiplies
            lines.append(f"{thing} {sign.replace('/', '//')}= {n}")
        code = "\n".join([*lines, f"print({thing})"])
        return (
            f"<llm-code>\n{code}\n</llm-code>\n"
            f"<llm-code-output>\n{self.result()}\n</llm-code-output>\n"
        )

    def solved(self, language: str = "en") -> str:
        """The story, then the program and its output."""
        return LANGUAGES[language].space.join(self.story(language)) + "\n" + self.computed()

    def answer(self, language: str = "en") -> str:
        """The same in the first phrasings, and the answer."""
        last = LANGUAGES[language].answer.format(n=f"\\boxed{{{self.result()}}}")
        return self._plain().solved(language) + last


def draw_problem(rng: random.Random, use: str, phrasings: Sequence[int]) -> Problem:
    """A problem over a frame of the given tenth, told in some of the given phrasings."""
    frame = draw_frame(rng, use)
    sentences = 2 + len(frame.events) + bool(frame.share)
    return Problem(
        frame=frame,
        person=rng.randrange(len(LANGUAGES["en"].names)),
        thing=rng.randrange(len(LANGUAGES["en"].things)),
        phrasings=tuple(rng.choice(phrasings) for _ in range(sentences)),
    )


def generate(
    part: str,
    seed: int = 0,
    count: int = 1000,
    languages: Sequence[str] = (),
    english: float = 0.62,
    chains: float = 0.25,
    prompted: bool = True,
) -> Iterator[dict[str, str]]:
    """The examples of one part, in a fixed order.

    pretraining: count documents of plain text, each problem in one language only; the share
        `english` is English (stories, worked solutions and, as the share `chains` of all
        documents, bare equations), the rest evenly the other five. Without `prompted` the English
        text keeps to worked solutions that stand alone: nothing follows a "Q:" and "A:".
    question_pairs: count translation examples X -> en, evenly over the five languages.
    reversed_pairs: count translation examples en -> X, told to translate.
    copies: count English questions "translated" into English, so that stage I answers a question
        of any language alike.
    control: the text of count such pairs, but of different problems on the two sides: no pair.
    responses: count English questions with their answers.
    translated_responses: the same, with the question told evenly in all six languages.
    native_responses: the same, and the answer in the question's language.
    code_pretraining, code_responses: pretraining and responses of the same problems, with programs
        and their outputs in place of equations.
    development, test: count problems, each told in every language; with _aside they are told in the
        phrasings that stages I and II never see.

    `languages` keeps the examples in these languages (of a pair, X) without changing which those
    are. Raises ValueError on an unknown part.
    """
    base.check_part("word_problems", part, TRAINING_PARTS + BENCHMARK_PARTS)
    if part in BENCHMARK_PARTS:
        examples = _benchmark(part, seed, count)
    else:
        examples = _training(part, seed, count, english, chains, prompted)
    return (e for e in examples if not languages or e["language"] in languages)


def _benchmark(part: str, seed: int, count: int) -> Iterator[dict[str, str]]:
    use = part.removesuffix("_aside")
    aside = part != use
    rng = random.Random(f"{use} {seed}")
    problems: dict[Frame, Problem] = {}
    while len(problems) < count:
        problem = draw_problem(rng, use, range(ASIDE))
        problems.setdefault(problem.frame, problem)
    for language in LANGUAGES:
        for i, problem in enumerate(problems.values()):
            if aside:
                told = (ASIDE,) * len(problem.phrasings)
                problem = dataclasses.replace(problem, phrasings=told)
            yield {
                "id": f"{part}-{i}",  # the same in every language
                "language": language,
                "question": problem.question(language),
                "answer": str(problem.result()),
            }


def _training(
    part: str, seed: int, count: int, english: float, chains: float, prompted: bool
) -> Iterator[dict[str, str]]:
    plain = part.removeprefix(CODE)
    rng = random.Random(f"{plain} {seed}")
    phrasings = range(PHRASINGS if plain == "pretraining" else ASIDE)
    for i in range(count):
        problem = draw_problem(rng, "training", phrasings)
        if plain != part:
            problem = CodeProblem(**vars(problem))
        if plain == "pretraining":
            language, instruction, response = _document(rng, problem, english, chains, prompted)
        elif part == "question_pairs":
            language, instruction, response = _pair(problem, OTHERS[i % len(OTHERS)])
        elif part == "reversed_pairs":
            language, response, question = _pair(problem, OTHERS[i % len(OTHERS)])
            instruction = prompts.translation_instruction("en", language, question)
        elif part == "copies":
            language, instruction, response = _pair(problem, "en")
        elif part == "control":
            language, instruction = OTHERS[i % len(OTHERS)], ""
            response = problem.question(language)
            other = draw_problem(rng, "training", phrasings)
            yield _example(f"{part}-{i}-en", "en", "", other.question("en"))
        else:
            language = "en" if plain == "responses" else tuple(LANGUAGES)[i % len(LANGUAGES)]
            told = language if part == "native_responses" else "en"
            instruction, response = problem.question(language), problem.answer(told)
        yield _example(f"{part}-{i}", language, instruction, response)


def _document(
    rng: random.Random, problem: Problem, english: float, chains: float, prompted: bool
) -> tuple[str, str, str]:
    kind = rng.random()
    if kind < chains:
        return "en", "", problem.computed()
    language = "en" if kind < english else rng.choice(OTHERS)
    forms = ("retold", "told")
    if language == "en":
        forms = ("answered", "answered", "solved", "retold") if prompted else ("solved",)
    form = rng.choice(forms)
    if form == "told":
        return language, "", f"Q: {problem.question(language)}"
    if form == "solved":
        return language, "", problem.solved()
    if form == "answered":
        return language, "", prompts.render("short", problem.question("en")) + problem.answer()
    other = tuple(rng.randrange(PHRASINGS) for _ in problem.phrasings)
    return language, "", problem.retold(language, other)


def _pair(problem: Problem, language: str) -> tuple[str, str, str]:
    return language, problem.question(language), problem.question("en")


def _example(name: str, language: str, instruction: str, response: str) -> dict[str, str]:
    return {"id": name, "language": language, "instruction": instruction, "response": response}


class WordProblems(base.GeneratedBuilder):
    """A part of the corpus, as `generate` says."""

    name = "word_problems"
    OPTIONS = {
        "part": "", "seed": 0, "count": 1000, "english": 0.62, "chains": 0.25, "prompted": True,
    }  # fmt: skip
    TRAINING_PARTS, BENCHMARK_PARTS = TRAINING_PARTS, BENCHMARK_PARTS
    generate = staticmethod(generate)


BUILDER = WordProblems
