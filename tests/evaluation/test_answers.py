"""Both readers of answers, on cases written by hand and on every published gold answer."""

import json
import math

import pytest

from qalign_jax.evaluation.answers import paper, paper_correct, sound, sound_correct


def lines(path):
    return [line for line in path.read_bytes().decode().split("\n") if line]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The answer is 18.", 18.0),
        ("#### -10", 10.0),  # the sign is dropped
        ("3,5", 35.0),
        ("1.000", 1.0),
        ("1,2,3", 3.0),  # becomes "12,3", whose last number is 3
        ("114,200", 114200.0),
        ("1,234,567", 1234567.0),
        ("no number at all", 0.0),
        ("", 0.0),
        ("উত্তর হল ১২।", 12.0),
        ("คำตอบคือ ๓.๕", 3.5),
        ("１，２３４", 234.0),  # a full-width comma joins nothing
        ("It is 5, then 7 apples", 7.0),
        ("7.", 7.0),
        ("1/2", 2.0),
        ("2²", 2.0),  # a superscript is no decimal digit
        ("9" * 400, math.inf),
    ],
)
def test_the_papers_reader_follows_its_protocol(text, expected):
    assert paper(text) == expected


def test_the_papers_reader_joins_every_second_comma_of_single_digits():
    assert paper("1,2") == 12.0
    assert paper("1,2,3,4") == 34.0


def test_the_papers_comparison_is_an_absolute_difference_below_a_thousandth():
    assert paper_correct(8.0, 8.0009)
    assert not paper_correct(8.0, 8.0011)
    assert not paper_correct(math.inf, math.inf)


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        # signs
        ("The answer is -3.", "en", -3),
        ("The answer is \u22123", "en", -3),
        ("Ответ: –3", "ru", -3),
        ("Ответ — 9.", "ru", 9),
        ("答案是-5", "zh", -5),
        ("答えは−５個です", "ja", -5),
        ("#### -10", "en", -10),
        ("\\boxed{-17}", "en", -17),
        ("-$3", "en", -3),
        ("$-3.50", "en", -3.5),
        ("€-5", "de", -5),
        ("x = - 5", "en", -5),
        ("it takes 3-5 days", "en", 5),
        ("3–5", "en", 5),
        ("20-5=15", "en", 15),
        ("20 - 5", "en", 5),
        ("20 -5", "en", 5),
        ("(2+3)-5", "en", 5),
        ("$3-$5", "en", 5),
        ("10%-20%", "en", 20),
        ("COVID-19", "en", 19),
        ("মোট টি-5", "bn", 5),
        ("- 5 apples", "en", 5),
        # digit groups
        ("1,234,567", "en", 1234567),
        ("1.234.567", "de", 1234567),
        ("1.234.567", "en", 1234567),
        ("1 234 567", "fr", 1234567),
        ("1\u00a0234\u00a0567", "fr", 1234567),
        ("1\u202f234", "fr", 1234),
        ("1'234'567", "de", 1234567),
        ("1’234", "de", 1234),
        ("1,00,000", "bn", 100000),
        ("12,34,567.5", "en", 1234567.5),
        ("114,200", "en", 114200),
        ("114,200", "de", 114200),
        ("80 000 dollars", "es", 80000),
        ("1{,}234", "en", 1234),
        ("1\\,234", "en", 1234),
        ("1,234.50", "de", 1234.5),
        ("1.234,50", "en", 1234.5),
        ("1 234,50", "ru", 1234.5),
        # the decimal mark
        ("3,5", "de", 3.5),
        ("3,50 €", "fr", 3.5),
        ("3.5", "de", 3.5),
        ("0,125", "de", 0.125),
        ("0.125", "de", 0.125),
        ("1.234", "de", 1234),
        ("1.234", "en", 1.234),
        ("1.000", "es", 1000),
        ("1.000", "sw", 1.0),
        ("12345.678", "de", 12345.678),
        ("Es kostet 2,50 + 0,625 = 3,125", "de", 3.125),
        ("It costs 1.75 each. The answer is: 5.250", "de", 5.25),
        ("The answer is: 1.234", "de", 1.234),
        ("The points (3,5) give 1,234", "en", 1234),
        ("He pays .5", "en", 0.5),
        ("1,2,3", "en", 3),
        ("2024 100", "en", 100),
        # other scripts
        ("উত্তর হল ১,২৩,৪৫৬।", "bn", 123456),
        ("คำตอบคือ ๑๒.๕", "th", 12.5),
        ("సమాధానం ౪౨.", "te", 42),
        ("उत्तर: ३.५", "hi", 3.5),
        ("الجواب ١٬٢٣٤٫٥", "ar", 1234.5),
        ("１，２３４．５", "ja", 1234.5),
        ("\u200f-٣", "ar", -3),
        ("4\u200b", "th", 4),
        # fractions, exponents, units
        ("The answer is 1/2", "en", 0.5),
        ("2 1/2 cups", "en", 2.5),
        ("2½", "en", 2.5),
        ("-\\frac{3}{4}", "en", -0.75),
        ("2\\frac{1}{2}", "en", 2.5),
        ("12/25/2023", "en", 2023),
        ("5/0", "en", 0),
        ("9.284e12", "en", 9.284e12),
        ("50%", "en", 50),
        ("25 cm^2", "en", 25),
        ("25 cm^{12}", "en", 25),
        ("\\$18", "en", 18),
        # the position of the answer
        ("The answer is 18. She has 3 left.", "en", 18),
        ("The answer is: 5\n\nThe answer is: 7", "en", 7),
        ("The answer is 5 + 6 = 11. Good.", "en", 11),
        ("The answer is $20 - $5 = $15 (of 30)", "en", 15),
        ("so \\boxed{12} since 3 + 4 = 7", "en", 12),
        ("\\boxed{\\text{even}} and 7", "en", 7),
        ("#### 5\n9 more", "en", 5),
        ("Answer: 4 (of 10)", "en", 4),
        ("Step-by-step answer: Roger has 5. In all 11", "en", 11),
        ("Die Antwort lautet 1.234, nicht 7", "de", 1234),
        ("**Answer:** 42 of 50", "en", 42),
        ("ステップごとの答え：最初に3台、今は5台", "ja", 5),
    ],
)
def test_the_sound_reader_reads(text, language, expected):
    assert sound(text, language) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("text", ["", "none at all", "...", "-", "cm^2", "9" * 400, "1e999"])
def test_the_sound_reader_gives_none_where_there_is_no_number(text):
    assert sound(text) is None


def test_the_sound_comparison_takes_nine_digits_and_never_none():
    assert sound_correct(8.0, 8.0009)
    assert not sound_correct(8.0, 8.002)
    assert not sound_correct(114200.0, 114201.0)
    assert sound_correct(9284017268534.4, 9284017268534)
    assert not sound_correct(9284017268534.4, 9284017300000)
    assert not sound_correct(0.0, None)


def test_readers_survive_long_hostile_text():
    for text in ("1,1" * 20000, "- " * 20000, "1/" * 20000, "\\boxed{" * 2000, "1 234" * 10000):
        paper(text)
        sound(text)


def test_both_readers_read_every_mgsm_gold(real_data):
    seen = 0
    for path in sorted((real_data / "mgsm" / "tsv").glob("*.tsv")):
        for line in lines(path):
            gold = line.split("\t")[1]
            assert paper(gold) == sound(gold) == float(gold.replace(",", "")), (path, gold)
            seen += 1
    for path in sorted((real_data / "mgsm" / "qalign_json").glob("*.json")):
        for line in lines(path):
            gold = str(json.loads(line)["response"])
            assert paper(gold) == sound(gold) == float(gold.replace(",", "")), (path, gold)
            seen += 1
    assert seen == 2 * 11 * 250


def test_both_readers_read_every_msvamp_gold(real_data):
    seen = 0
    for path in sorted((real_data / "msvamp").glob("*.json")):
        for line in lines(path):
            gold = json.loads(line)["response"]
            assert paper(gold) == sound(gold) == float(gold)
            seen += 1
    assert seen == 10 * 1000


@pytest.mark.slow
def test_gsm8k_golds_keep_their_sign_in_the_sound_reader_only(real_data):
    negatives = 0
    for name in ("train", "test"):
        for line in lines(real_data / "gsm8k" / f"{name}.jsonl"):
            answer = json.loads(line)["answer"]
            gold = float(answer.split("####")[1].replace(",", ""))
            assert sound(answer) == gold, answer
            assert paper(answer) == abs(gold), answer
            negatives += gold < 0
    assert negatives == 5


def test_gsmhard_golds_are_read_whatever_their_size_and_sign(real_data):
    golds = [json.loads(x)["target"] for x in lines(real_data / "pal_math" / "gsmhardv2.jsonl")]
    assert len(golds) == 1319 and max(golds) > 9.2e12
    for gold in golds:
        assert sound(str(gold)) == pytest.approx(gold, rel=1e-15)
        assert sound_correct(gold, sound(f"The answer is {gold:,.3f}.", "en"))
        assert paper_correct(abs(gold), paper(f"{gold:.4f}"))


def test_the_sound_reader_reads_the_published_worked_answers_in_every_language(real_data):
    exemplars = json.loads((real_data / "mgsm" / "exemplars.json").read_text())
    expected = [float(number) for number in exemplars["EXEMPLAR_NUMBER_ANSWERS"]]
    assert len(exemplars["MGSM_EXEMPLARS"]) == 11
    for language, shots in exemplars["MGSM_EXEMPLARS"].items():
        for index, gold in enumerate(expected, start=1):
            answer = shots[str(index)]["a"]
            assert sound(answer, language) == gold, (language, answer)
            assert sound(answer + " 99", language) == gold, (language, answer)
