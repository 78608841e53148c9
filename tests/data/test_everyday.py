import collections
import json
import re
import subprocess
import sys

import pytest

from qalign_jax.data.datasets import everyday
from qalign_jax.data.examples import load_examples
from qalign_jax.data.generated.everyday_facts import (
    FACTS,
    LANGUAGES,
    PHRASINGS,
    QUESTIONS,
    STATEMENTS,
    THINGS,
    VALUES,
)
from qalign_jax.evaluation import benchmarks

CHOICE = re.compile(r"([A-D])\. ([^\t\n]+)")


def generate(part, count=600, **options):
    return list(everyday.generate(part, count=count, **options))


# (language, question without its choices) -> the facts that it may ask for
ASKED = collections.defaultdict(list)
for relation, phrasings in QUESTIONS.items():
    for phrasing in phrasings:
        for language, stem in phrasing.items():
            for thing, texts in enumerate(THINGS):
                ASKED[language, stem.format(thing=texts[language])].append((thing, relation))


def asked_fact(text, language):
    """(thing, relation) that a text's question asks for, read from the text alone."""
    [fact] = ASKED[language, text.removeprefix("Q: ").split("\n")[0]]
    return fact


def told_choices(text):
    return [value for _, value in CHOICE.findall(text)]


def question_of(example):
    return example["instruction"] or example["response"]


@pytest.mark.parametrize("part", everyday.TRAINING_PARTS)
def test_no_training_question_of_any_language_asks_for_a_held_out_fact(part):
    asked = 0
    for example in generate(part) + generate(part, seed=1):
        if not question_of(example).startswith("Facts: "):
            fact = asked_fact(question_of(example), example["language"])
            assert everyday.use_of(*fact) == "training", example
            asked += 1
    assert asked > 700


def test_test_and_development_questions_ask_for_their_own_facts():
    for part in everyday.BENCHMARK_PARTS:
        facts = {asked_fact(e["question"], e["language"]) for e in generate(part, count=200)}
        assert {everyday.use_of(*fact) for fact in facts} == {part}
        assert len(facts) > 35


def test_every_fact_is_stated_in_english_and_no_other_language_states_any():
    examples = generate("pretraining", count=3000)
    stated = {
        statement
        for example in examples
        if example["response"].startswith("Facts: ")
        for statement in example["response"].removeprefix("Facts: ").removesuffix(".").split("; ")
    }
    for (thing, relation), value in FACTS.items():
        texts = {"thing": THINGS[thing]["en"], "value": VALUES[relation][value]["en"]}
        assert stated & {form.format(**texts) for form in STATEMENTS[relation]}, texts
    for example in examples:
        if example["language"] != "en":
            assert re.fullmatch(r"Q: [^\n]*\nOptions:[^\n]*\nAnswer:", example["response"])


@pytest.mark.parametrize("part", ["pretraining", "question_pairs"])
def test_choices_of_unanswered_questions_say_nothing_of_what_is_right(part):
    """The right value is among the choices as often as any other value of its relation."""
    right, expected = 0, 0.0
    for example in generate(part, count=9000, languages=everyday.OTHERS):
        fact = asked_fact(question_of(example), example["language"])
        choices = told_choices(question_of(example))
        if fact in FACTS and choices:
            values = VALUES[fact[1]]
            right += values[FACTS[fact]][example["language"]] in choices
            expected += everyday.CHOICES / len(values)
    assert expected > 150 and abs(right - expected) < 3 * expected**0.5


def test_answers_are_the_facts_in_english_and_among_the_choices_in_every_language():
    for example in generate("translated_responses") + generate("test", count=100):
        text, language = example.get("instruction") or example["question"], example["language"]
        thing, relation = asked_fact(text, language)
        value = VALUES[relation][FACTS[thing, relation]]
        assert (example.get("response") or example["answer"]) == value["en"]
        assert value[language] in told_choices(text)
        assert len(set(told_choices(text))) == everyday.CHOICES


@pytest.mark.parametrize("part", ["responses", "translated_responses", "test"])
def test_the_right_choice_stands_under_each_letter_equally_often(part):
    letters = collections.Counter()
    for example in generate(part, count=480):
        text, language = example.get("instruction") or example["question"], example["language"]
        thing, relation = asked_fact(text, language)
        value = VALUES[relation][FACTS[thing, relation]][language]
        [letter] = [letter for letter, choice in CHOICE.findall(text) if choice == value]
        letters[language, letter] += 1
    assert len(set(letters.values())) == 1
    assert {letter for _, letter in letters} == set("ABCD")


def test_a_relations_most_frequent_value_is_wrong_more_often_than_right():
    offered, right = collections.Counter(), collections.Counter()
    for example in generate("responses", count=4000):
        _, relation = asked_fact(example["instruction"], "en")
        offered.update((relation, value) for value in told_choices(example["instruction"]))
        right[relation, example["response"]] += 1
    frequent = [key for key, count in offered.items() if count > 150]
    assert len(frequent) > 25
    assert all(right[key] / offered[key] < 0.5 for key in frequent)


def test_benchmark_questions_are_parallel_and_distinct():
    by_language = collections.defaultdict(list)
    for example in generate("test", count=100):
        by_language[example["language"]].append(example)
    assert tuple(by_language) == LANGUAGES
    english = by_language["en"]
    assert len({example["question"] for example in english}) == 100
    for language, examples in by_language.items():
        for example, twin in zip(examples, english, strict=True):
            assert (example["id"], example["answer"]) == (twin["id"], twin["answer"])
            assert asked_fact(example["question"], language) == asked_fact(twin["question"], "en")
            assert json.loads(example["choices"]) == told_choices(twin["question"])


def test_pairs_tell_the_same_question_and_choices_twice():
    pairs = generate("question_pairs")
    share = collections.Counter(example["language"] for example in pairs)
    assert share == dict.fromkeys(("de", "es", "fr", "sw", "zh"), 120)
    for example in pairs:
        language = example["language"]
        fact = asked_fact(example["instruction"], language)
        assert asked_fact(example["response"], "en") == fact
        english = {text[language]: text["en"] for text in VALUES[fact[1]].values()}
        told = told_choices(example["instruction"])
        assert [english[value] for value in told] == told_choices(example["response"])
    assert sum(bool(told_choices(e["instruction"])) for e in pairs) == 600 // everyday.LISTED
    assert all(e["instruction"] == e["response"] for e in generate("copies"))


@pytest.mark.parametrize("language", LANGUAGES)
def test_translations_are_one_to_one(language):
    assert len({texts[language] for texts in THINGS}) == len(THINGS)
    for values in VALUES.values():
        assert len({texts[language] for texts in values.values()}) == len(values)
    stems = {p[language] for phrasings in QUESTIONS.values() for p in phrasings}
    assert len(stems) == PHRASINGS * len(QUESTIONS)
    assert all(stem.count("{thing}") == 1 for stem in stems)


def test_every_relation_can_fill_its_choices_and_uses_every_value():
    assert set(STATEMENTS) == set(QUESTIONS) == set(VALUES)
    for relation, values in VALUES.items():
        used = {value for (_, other), value in FACTS.items() if other == relation}
        assert used == set(values) and len(used) > everyday.CHOICES


def test_unprompted_english_text_keeps_to_statements():
    for example in generate("pretraining", english=1.0, prompted=False):
        assert example["language"] == "en" and not example["instruction"]
        assert example["response"].startswith("Facts: ") and "Q:" not in example["response"]


def test_languages_keep_examples_without_changing_them():
    everything = generate("pretraining")
    assert generate("pretraining", languages=("sw",)) == [
        example for example in everything if example["language"] == "sw"
    ]


def test_seeds_differ_and_processes_do_not():
    assert generate("responses", seed=1) != generate("responses", seed=2)
    program = (
        "import hashlib; from qalign_jax.data.datasets import everyday as e\n"
        "parts = e.TRAINING_PARTS + e.BENCHMARK_PARTS\n"
        "text = repr([list(e.generate(part, seed=5, count=40)) for part in parts])\n"
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


def test_built_data_set_gives_the_generated_examples_and_the_benchmark_reads_them(tmp_path):
    source = {"name": "everyday", "part": "question_pairs", "seed": 3, "count": 20}
    stored = load_examples(source, tmp_path)
    assert list(stored) == generate("question_pairs", seed=3, count=20)
    problems = benchmarks.get("everyday").load(tmp_path, part="test", count=8, languages=("de",))
    assert [p["question"] for p in problems] == [
        e["question"] for e in generate("test", count=8, languages=("de",))
    ]
    assert all(len(p["choices"]) == 4 and p["answer"] in p["choices"] for p in problems)


def test_an_unknown_part_is_refused_with_the_parts_that_exist(tmp_path):
    with pytest.raises(ValueError, match=r"part='train' .* one of pretraining, question_pairs"):
        load_examples({"name": "everyday", "part": "train"}, tmp_path)
