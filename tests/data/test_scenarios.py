"""The data sets of solutions with code, common sense, inference and translation."""

import pytest

from qalign_jax.data import prompts
from qalign_jax.data.examples import load_examples
from tests.files import write_jsonl, write_lines


def examples(tmp_path, name, path, **options):
    source = {"name": name, "path": str(path)} | options
    return list(load_examples(source, tmp_path / "built"))


def solution(question, text, correct=True, dataset="gsm8k"):
    return {
        "question": question,
        "expected_answer": "7",
        "predicted_answer": "7" if correct else "8",
        "error_message": "<not_executed>",
        "is_correct": correct,
        "generation_type": "without_reference_solution",
        "dataset": dataset,
        "generated_solution": text,
    }


@pytest.fixture
def openmath(tmp_path):
    """Two shards: solutions of two GSM8K problems and one MATH problem, one of them wrong."""
    folder = tmp_path / "openmath" / "correct_solutions"
    code = "Add.\n<llm-code>\nprint(3 + 4)\n</llm-code>\n<llm-code-output>\n7\n</llm-code-output>\n"
    write_jsonl(
        folder / "b.jsonl",
        [
            solution("one?", "second"),
            solution("two?", "other"),
        ],
    )
    write_jsonl(
        folder / "a.jsonl",
        [
            solution("one?", "wrong", correct=False),
            solution("one?", code + "It is \\boxed{7}."),
            solution("three?", "algebra", dataset="math"),
            solution("one?", "first but one"),
        ],
    )
    return tmp_path / "openmath"


def test_openmath_keeps_correct_solutions_with_their_code_in_the_order_of_the_files(
    tmp_path, openmath
):
    rows = examples(tmp_path, "openmath", openmath)
    assert [row["id"] for row in rows] == ["a/2", "a/3", "a/4", "b/1", "b/2"]
    assert rows[0] == {
        "id": "a/2",
        "instruction": "one?",
        "response": "Add.\n<llm-code>\nprint(3 + 4)\n</llm-code>\n<llm-code-output>\n7\n"
        "</llm-code-output>\nIt is \\boxed{7}.",
        "language": "en",
    }


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ({"cap": 1}, ["a/2", "a/3", "b/2"]),
        ({"cap": 2}, ["a/2", "a/3", "a/4", "b/2"]),
        ({"cap": 1, "parts": ("gsm8k",)}, ["a/2", "b/2"]),
        ({"parts": ("math",)}, ["a/3"]),
    ],
)
def test_openmath_caps_the_solutions_of_a_question_and_chooses_parts(
    tmp_path, openmath, options, ids
):
    assert [row["id"] for row in examples(tmp_path, "openmath", openmath, **options)] == ids


def test_openmath_prefers_the_splits_file_to_the_rest_of_the_folder(tmp_path, openmath):
    write_jsonl(openmath / "correct_solutions" / "train.jsonl", [solution("four?", "whole")])
    assert [row["id"] for row in examples(tmp_path, "openmath", openmath)] == ["train/1"]
    alone = openmath / "correct_solutions" / "b.jsonl"
    assert len(examples(tmp_path, "openmath", alone)) == 2


def csqa_row(name, stem, texts, key, lang=""):
    choices = [{"label": label, "text": text} for label, text in zip("ABCDE", texts, strict=False)]
    row = {"id": name, "question": {"stem": stem, "question_concept": "x", "choices": choices}}
    return row | {"answerKey": key} | ({"lang": lang} if lang else {})


def test_csqa_is_answered_by_the_letter_though_choices_are_equal(tmp_path):
    texts = ["bank", "shop", "bank", "mall", "sea"]
    path = write_jsonl(
        tmp_path / "csqa" / "train_rand_split.jsonl", [csqa_row("q1", "Where?", texts, "C")]
    )
    expected = {
        "id": "q1",
        "instruction": "Where?\nOptions:A. bank\tB. shop\tC. bank\tD. mall\tE. sea\nAnswer:",
        "response": "C",
        "language": "en",
    }
    assert examples(tmp_path, "csqa", path) == [expected]
    assert examples(tmp_path, "csqa", tmp_path / "csqa") == [expected]
    with pytest.raises(ValueError, match=r"dev_rand_split\.jsonl"):
        examples(tmp_path, "csqa", tmp_path / "csqa", split="dev")


def test_csqa_reads_the_layout_of_xcsqa(tmp_path):
    row = csqa_row("q1", "どこ？", ["海", "山"], "B", "jap")
    path = write_jsonl(tmp_path / "X-CSQA" / "en" / "train.jsonl", [row])
    for given in (path, tmp_path / "X-CSQA"):
        (read,) = examples(tmp_path, "csqa", given)
        assert (read["language"], read["response"]) == ("ja", "B")


PAIRS = [("A man eats.", "He sleeps.", "contradiction"), ("It\ufeff rains.", "Wet.", "neutral")]


def mnli_files(folder):
    """Two pairs, one without a gold label and one without a hypothesis, in each format."""
    rows = [*PAIRS, ("x", "y", "-"), ("z", " ", "neutral")]
    columns = [
        "gold_label",
        "sentence1_parse",
        "sentence1",
        "sentence2",
        "pairID",
        "label1",
        "label2",
    ]
    return [
        write_jsonl(
            folder / "multinli_1.0_train.jsonl",
            [
                {"gold_label": label, "sentence1": one, "sentence2": two, "pairID": "7n"}
                for one, two, label in rows
            ],
        ),
        write_lines(
            folder / "multinli_1.0_train.txt",
            [
                "\t".join(columns),
                *("\t".join([label, "(S)", *sides, "7n", label]) for *sides, label in rows),
            ],
        ),
        write_lines(folder / "train-en.tsv", ["\t".join(pair) for pair in rows]),
        write_lines(
            folder / "multinli.train.en.tsv",
            ["premise\thypo\tlabel"]
            + ["\t".join(pair).replace("contradiction", "contradictory") for pair in rows],
        ),
    ]


def test_mnli_reads_every_published_format_and_drops_pairs_without_a_label(tmp_path):
    for path in mnli_files(tmp_path / "mnli"):
        rows = examples(tmp_path, "mnli", path)
        assert [row["instruction"] for row in rows] == [
            "Premise: A man eats.\nHypothesis: He sleeps.\nLabel:",
            "Premise: It\ufeff rains.\nHypothesis: Wet.\nLabel:",
        ], path
        assert [row["response"] for row in rows] == ["contradiction", "neutral"]


def test_mnli_finds_its_file_in_a_folder(tmp_path):
    whole = mnli_files(tmp_path / "mnli")
    for path in whole:
        assert len(examples(tmp_path, "mnli", tmp_path / "mnli")) == 2
        path.unlink()
    with pytest.raises(ValueError, match="none of multinli"):
        examples(tmp_path, "mnli", tmp_path / "mnli")


def test_translated_common_sense_is_matched_by_id_with_its_options(tmp_path):
    folder = tmp_path / "translated"
    english = [csqa_row(f"q{n}", f"Where {n}?", ["sea", "hill"], "A") for n in (1, 2, 3)]
    german = [csqa_row(f"q{n}", f"Wo {n}?", ["Meer", "Berg"], "A") for n in (2, 1, 9)]
    write_jsonl(folder / "en" / "train.jsonl", english)
    write_jsonl(folder / "de" / "train.jsonl", german)
    write_jsonl(folder / "jap" / "train.jsonl", [csqa_row("q2", "どこ？", ["海", "山"], "A")])
    rows = examples(tmp_path, "translated_pairs", folder)
    assert [row["id"] for row in rows] == ["de/q1", "de/q2", "ja/q2"]
    assert rows[2] == {
        "id": "ja/q2",
        "instruction": "Translate the following sentences from Japanese to English. "
        "どこ？\nOptions:A. 海\tB. 山\nAnswer:",
        "response": "Where 2?\nOptions:A. sea\tB. hill\nAnswer:",
        "language": "ja",
    }
    assert [row["id"] for row in examples(tmp_path, "translated_pairs", folder, languages=("ja",))]
    # stage II asks what stage I translated into
    questions = examples(tmp_path, "csqa", folder / "en" / "train.jsonl")
    assert rows[2]["response"] == questions[1]["instruction"]


def test_translated_inference_is_matched_by_line_and_interleaved(tmp_path):
    folder = tmp_path / "multinli"
    header = "premise\thypo\tlabel"
    write_lines(
        folder / "multinli.train.en.tsv",
        [header, "One.\tTwo.\tneutral", "Three.\tFour.\tneutral", "5\t6\tneutral"],
    )
    write_lines(
        folder / "multinli.train.de.tsv",
        [header, "Eins.\tZwei.\tneutral", "Drei.\tVier.\tneutral", "\t6\tneutral"],
    )
    write_lines(
        folder / "multinli.train.fr.tsv",
        [header, "Un.\tDeux.\tneutral", "Trois.\tQuatre.\tneutral", "5\t\tneutral"],
    )
    rows = examples(tmp_path, "translated_pairs", folder)
    assert [row["id"] for row in rows] == ["de/2", "fr/2", "de/3", "fr/3"]
    assert rows[1]["instruction"] == prompts.translation_instruction(
        "fr", "en", "Premise: Un.\nHypothesis: Deux.\nLabel:"
    )
    assert rows[1]["response"] == "Premise: One.\nHypothesis: Two.\nLabel:"
    (row,) = examples(tmp_path, "translated_pairs", folder, languages=("fr",), slice="[1:]")
    assert row["id"] == "fr/3"


def test_translations_go_from_english_and_lose_carriage_returns(tmp_path):
    folder = tmp_path / "ntrex"
    folder.mkdir()
    (folder / "newstest2019-src.eng.txt").write_bytes(b"Hello.\r\nBye.\r\n")
    (folder / "newstest2019-ref.zho-CN.txt").write_bytes("你好。\r\n再见。\r\n".encode())
    (folder / "newstest2019-ref.deu.txt").write_bytes(b"Hallo.\r\n\r\n")
    rows = examples(tmp_path, "translations", folder)
    assert [row["id"] for row in rows] == ["zh/1", "de/1", "zh/2"]
    assert rows[0] == {
        "id": "zh/1",
        "instruction": "Translate the following sentences from English to Chinese. Hello.",
        "response": "你好。",
        "language": "zh",
    }


def test_gsm8kinstruct_reads_a_folder_of_languages(tmp_path):
    folder = tmp_path / "gsm8kinstruct"
    for code, question in (("de", "Wie viele?"), ("bn", "কত?"), ("en", "How many?")):
        write_jsonl(folder / code / "train.txt", [{"question": question, "answer": "#### 7"}])
    rows = examples(tmp_path, "gsm8kinstruct", folder, languages=("en", "bn"))
    assert [(row["id"], row["language"], row["instruction"]) for row in rows] == [
        ("en/1", "en", "How many?"),
        ("bn/1", "bn", "কত?"),
    ]
    assert len(examples(tmp_path, "gsm8kinstruct", folder)) == 3
    row = {"prompt": "answer in German.\n\n### Instruction:\nWo?\n\n### Response:", "chosen": "Da."}
    write_jsonl(folder / "MGSM8KInstruct_Parallel.json", [row])
    assert [row["language"] for row in examples(tmp_path, "gsm8kinstruct", folder)] == ["de"]


@pytest.mark.slow
def test_the_real_files_have_their_published_sizes(tmp_path, real_data):
    for name, path, options, count in (
        ("csqa", "commonsenseqa", {}, 9741),
        ("csqa", "commonsenseqa", {"split": "dev"}, 1221),
        ("csqa", "xcsqa_sample/X-CSQA", {}, 5),
        ("mnli", "xnli", {"split": "dev"}, 2490),
        ("translations", "ntrex128", {"languages": ("de", "te")}, 2 * 1997),
        ("gsm8kinstruct", "gsm8kinstruct_question/gsm8kinstruct_en/train.txt", {}, 7476),
    ):
        assert len(examples(tmp_path, name, real_data / path, **options)) == count, (name, path)
