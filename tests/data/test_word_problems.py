import collections
import contextlib
import hashlib
import io
import re
import string
import subprocess
import sys

import pytest

from qalign_jax.data.datasets import word_problems
from qalign_jax.data.examples import load_examples
from qalign_jax.data.generated.word_problem_templates import ASIDE, LANGUAGES, PHRASINGS

EQUATION = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")
PROGRAM = re.compile(
    r"<llm-code>\n(?P<code>.*)\n</llm-code>\n"
    r"<llm-code-output>\n(?P<output>\d+)\n</llm-code-output>\n"
    r"(The answer is \\boxed{(?P<answer>\d+)}\.)?",
    re.DOTALL,
)
RESULT = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
}


def generate(part, count=600, **options):
    return list(word_problems.generate(part, count=count, **options))


def numbers_in(text):
    return tuple(int(n) for n in re.findall(r"\d+", text))


def told_numbers(example):
    """The numbers of the problem in a training example, without those of its answer."""
    if example["instruction"]:
        return numbers_in(example["instruction"])
    text, _, program = example["response"].partition("<llm-code>")
    if program and not text:
        return numbers_in(program.split("</llm-code>")[0])
    equations = EQUATION.findall(text)
    if equations and not re.search("[a-z]", text):  # a chain of equations without a sentence
        first, *_ = equations
        return (int(first[0]), *(int(right) for _, _, right, _ in equations))
    return numbers_in(EQUATION.sub("", text.split("\nA:")[0]))


def printed(code):
    """What a program of ours prints."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(code, {})
    return output.getvalue()


@pytest.mark.parametrize("part", word_problems.TRAINING_PARTS)
def test_no_training_example_tells_the_numbers_of_a_held_out_problem(part):
    held_out = {
        numbers_in(example["question"])
        for benchmark in ("development", "test")
        for example in generate(benchmark, count=400, languages=("en",))
    }
    for seed in range(3):
        for example in generate(part, seed=seed):
            assert word_problems.tenth(told_numbers(example)) == "training", example
            assert told_numbers(example) not in held_out


def test_development_and_test_problems_are_different_tenths():
    for part in word_problems.BENCHMARK_PARTS:
        for example in generate(part, count=120):
            assert word_problems.tenth(numbers_in(example["question"])) == part.split("_")[0]


def test_every_answer_is_what_its_equations_compute_from_the_question():
    for example in generate("responses", count=2000):
        given = collections.Counter(numbers_in(example["instruction"]))
        previous = None
        for left, sign, right, value in EQUATION.findall(example["response"]):
            assert RESULT[sign](int(left), int(right)) == int(value)
            if previous is None:
                given[int(left)] -= 1
            else:
                assert left == previous
            given[int(right)] -= 1
            previous = value
        assert not any(given.values()), "each number of the question is used once"
        assert example["response"].endswith(f" The answer is {previous}.")


def test_every_program_prints_the_answer_that_the_same_problem_has_in_words():
    in_words = generate("responses", count=2000)
    in_code = generate("code_responses", count=2000)
    for words, code in zip(in_words, in_code, strict=True):
        assert code["instruction"] == words["instruction"]
        found = PROGRAM.search(code["response"])
        story = code["response"].removesuffix("\n" + found[0])
        assert numbers_in(story) == numbers_in(code["instruction"])
        assert found["answer"] == found["output"]
        assert printed(found["code"]) == found["output"] + "\n", code
        assert words["response"].endswith(f" The answer is {found['answer']}.")


def test_programs_stand_in_code_pretraining_where_pretraining_has_equations():
    for options in ({}, {"english": 1.0, "prompted": False}):
        in_words = generate("pretraining", **options)
        in_code = generate("code_pretraining", **options)
        for words, code in zip(in_words, in_code, strict=True):
            assert told_numbers(code) == told_numbers(words)
            found = PROGRAM.search(code["response"])
            assert bool(found) == bool(EQUATION.search(words["response"]))
            if not found:
                assert code["response"] == words["response"]
                continue
            assert code["language"] == "en" and not EQUATION.search(code["response"])
            assert code["response"].endswith(found[0])
            assert printed(found["code"]) == found["output"] + "\n"
            assert EQUATION.findall(words["response"])[-1][-1] == found["output"]


def test_all_values_are_whole_and_at_most_25():
    for part in word_problems.TRAINING_PARTS:
        for example in generate(part, count=1000):
            text = example["instruction"] + example["response"]
            assert all(2 <= n <= 25 for n in numbers_in(text)), example


def test_problems_have_one_to_three_steps():
    steps = collections.Counter(
        len(EQUATION.findall(example["response"])) for example in generate("responses")
    )
    assert sorted(steps) == [1, 2, 3] and min(steps.values()) > 40


@pytest.mark.parametrize("part", word_problems.BENCHMARK_PARTS)
def test_benchmark_problems_are_parallel_and_distinct(part):
    by_language = collections.defaultdict(list)
    for example in generate(part, count=120):
        by_language[example["language"]].append(example)
    assert list(by_language) == ["en", "de", "es", "fr", "sw", "zh"]
    english = by_language["en"]
    assert len({example["question"] for example in english}) == 120
    assert len({example["id"] for example in english}) == 120
    for language, examples in by_language.items():
        for example, twin in zip(examples, english, strict=True):
            assert (example["id"], example["answer"]) == (twin["id"], twin["answer"])
            assert numbers_in(example["question"]) == numbers_in(twin["question"])
            assert language == "en" or example["question"] != twin["question"]


def test_benchmark_answers_are_those_of_the_english_solutions():
    """An independent solver of the English text, in which every sentence changes one number."""
    gains = ("buys", "finds", "gives him", "gives her", "gets another", "wins")
    for example in generate("test", count=300, languages=("en",)):
        *story, _ = re.split(r"(?<=[.?]) ", example["question"])
        value = None
        for sentence in story:
            for n in numbers_in(sentence):
                if value is None:
                    value = n
                elif "bag" in sentence:
                    value *= n
                elif "children" in sentence:
                    value /= n
                else:
                    value += n if any(gain in sentence for gain in gains) else -n
        assert value == int(example["answer"]), example


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_sentence_type_renders_in_every_phrasing_person_and_thing(language):
    told = LANGUAGES[language]
    assert list(told.sentences) == list(LANGUAGES["en"].sentences)
    assert len(told.names) == len(LANGUAGES["en"].names)
    assert len(told.things) == len(LANGUAGES["en"].things)
    for kind, phrasings in told.sentences.items():
        assert len(set(phrasings)) == PHRASINGS
        fields = [
            {name for _, name, _, _ in string.Formatter().parse(t) if name} for t in phrasings
        ]
        numbers = {"bags": {"a", "b"}, "how_many": set(), "how_many_each": set()}.get(kind, {"n"})
        assert all(f & {"a", "b", "n"} == numbers for f in fields)
        for template in phrasings:
            for person, name in enumerate(told.names):
                for thing in told.things:
                    forms = {"name": name, **told.pronouns[person % 2], **thing}
                    text = template.format(a=3, b=4, n=5, **forms)
                    assert "{" not in text and "  " not in text
                    assert numbers_in(text) == tuple(
                        sorted({"a": 3, "b": 4, "n": 5}[n] for n in numbers)
                    )


def test_stages_see_two_phrasings_and_the_third_is_kept_for_the_aside_benchmarks():
    def uses_aside(text):
        return any(
            mark in text for mark in ("starts with", "each holding", "Under the bed", "At night")
        )

    assert ASIDE == PHRASINGS - 1
    responses = ("responses", "translated_responses", "code_responses")
    for part in ("question_pairs", *responses, "control"):
        for example in generate(part):
            assert not uses_aside(example["instruction"] + example["response"])
    assert any(uses_aside(example["response"]) for example in generate("pretraining"))
    aside = generate("test_aside", count=50, languages=("en",))
    seen = generate("test", count=50, languages=("en",))
    assert all("at the end" in e["question"] or "of the children" in e["question"] for e in aside)
    assert [e["answer"] for e in aside] == [e["answer"] for e in seen]


def test_pretraining_text_is_monolingual_and_62_percent_english():
    examples = generate("pretraining", count=4000)
    share = collections.Counter(example["language"] for example in examples)
    assert abs(share["en"] / 4000 - 0.62) < 0.02
    assert all(abs(share[language] / 4000 - 0.076) < 0.015 for language in word_problems.OTHERS)
    chains = sum(not re.search("[a-z]", e["response"]) for e in examples if e["language"] == "en")
    assert abs(chains / 4000 - 0.25) < 0.02
    assert not any(example["instruction"] for example in examples)


def test_pairs_and_control_hold_the_same_amount_of_text_and_only_pairs_are_parallel():
    pairs, control = generate("question_pairs"), generate("control")
    assert len(control) == 2 * len(pairs)
    for example in pairs:
        assert numbers_in(example["instruction"]) == numbers_in(example["response"])
    for example in generate("copies"):
        assert example["instruction"] == example["response"]
    share = collections.Counter(example["language"] for example in control)
    assert share == {"en": 600, "de": 120, "es": 120, "fr": 120, "sw": 120, "zh": 120}
    alike = sum(
        told_numbers(one) == told_numbers(other)
        for one, other in zip(control[::2], control[1::2], strict=True)
    )
    assert alike < 10


def test_languages_keep_examples_without_changing_them():
    everything = generate("pretraining")
    assert generate("pretraining", languages=("en",)) == [
        example for example in everything if example["language"] == "en"
    ]


def test_seeds_differ_and_processes_do_not():
    assert generate("responses", seed=1) != generate("responses", seed=2)
    program = (
        "import hashlib; from qalign_jax.data.datasets import word_problems as w\n"
        "parts = w.TRAINING_PARTS + w.BENCHMARK_PARTS\n"
        "text = repr([list(w.generate(part, seed=5, count=40)) for part in parts])\n"
        "print(hashlib.sha256(text.encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_the_parts_of_the_first_release_are_unchanged():
    parts = (
        "pretraining", "question_pairs", "copies", "responses", "translated_responses", "control",
        *word_problems.BENCHMARK_PARTS,
    )  # fmt: skip
    text = repr([generate(part, seed=5, count=40) for part in parts])
    assert hashlib.sha256(text.encode()).hexdigest() == (
        "d0c817b5136dbd528019c6df9ae1bca7c6a2294b43a268128f84d39301d7b2b4"
    )


def test_built_data_set_gives_the_generated_examples_in_order(tmp_path):
    for part in ("question_pairs", "test"):
        source = {"name": "word_problems", "part": part, "seed": 3, "count": 20}
        stored = load_examples(source, tmp_path)
        assert [stored[i] for i in range(len(stored))] == generate(part, seed=3, count=20)


def test_an_unknown_part_is_refused_with_the_parts_that_exist(tmp_path):
    with pytest.raises(ValueError, match=r"part='train' .* one of pretraining, question_pairs"):
        load_examples({"name": "word_problems", "part": "train"}, tmp_path)
