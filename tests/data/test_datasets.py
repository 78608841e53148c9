import json
import multiprocessing
import subprocess
import sys

import pytest

from qalign_jax.data import prompts
from qalign_jax.data.examples import load_examples
from tests.files import builder_of, write_jsonl, write_lines


def examples(tmp_path, name, path, **options):
    source = {"name": name, "path": str(path)} | options
    return list(load_examples(source, tmp_path / "built", builder_of(name)))


def test_question_pairs_take_the_languages_that_have_both_sides(tmp_path, pairs_folder):
    rows = examples(tmp_path, "question_pairs", pairs_folder)
    assert [row["id"] for row in rows] == ["de/1", "zh/1", "de/2", "zh/2", "de/3", "zh/3"]
    assert rows[1] == {
        "id": "zh/1",
        "instruction": "Translate the following sentences from Chinese to English. "
        "汤姆有 3 个苹果，又买了 4 个。他有多少个苹果？",
        "response": "Tom has 3 apples and buys 4 more. How many apples does he have?",
        "language": "zh",
    }


def test_question_pairs_of_one_question_stand_together_though_their_lines_differ(tmp_path):
    folder = tmp_path / "pairs"
    write_lines(folder / "de-en" / "train.de", ["eins", "zwei", "drei"])
    write_lines(folder / "de-en" / "train.en", ["one", "two", "three"])
    write_lines(folder / "fr-en" / "train.fr", ["trois", "un"])
    write_lines(folder / "fr-en" / "train.en", ["three", "one"])
    rows = examples(tmp_path, "question_pairs", folder)
    assert [row["id"] for row in rows] == ["de/1", "fr/2", "de/2", "de/3", "fr/1"]


def test_question_pairs_turn_round(tmp_path, pairs_folder):
    row = examples(tmp_path, "question_pairs", pairs_folder, languages=("de",), reverse=True)[1]
    assert row["instruction"].startswith(
        "Translate the following sentences from English to German. A box holds"
    )
    assert row["response"].startswith("Eine Kiste")


def test_lines_end_at_line_feeds_alone_and_characters_are_kept(tmp_path):
    folder = tmp_path / "pairs" / "de-en"
    odd = "\u00a0wie\u2028viele\u0085 \u200c\u200d\u200b \ufeff ３\u000b?"
    folder.mkdir(parents=True)
    (folder / "train.de").write_bytes(f"\ufeff{odd}\r\n\r\nvier\r\n".encode())
    (folder / "train.en").write_bytes(b"how many?\nempty on the other side\nfour")
    rows = examples(tmp_path, "question_pairs", tmp_path / "pairs")
    assert [row["id"] for row in rows] == ["de/1", "de/3"]
    assert rows[0]["instruction"] == prompts.translation_instruction("de", "en", odd)
    assert rows[1]["response"] == "four"


GSM8K_ROW = {
    "question": "Natalia sold clips to 48 friends and half as many to others. How many clips?",
    "answer": "She sold 48/2 = <<48/2=24>>24 to others.\nThat is 48+24 = $<<48+24=1072>>1,072."
    "\n#### 1,072",
}


@pytest.mark.parametrize(
    ("style", "last"), [("metamath", "The answer is: 1,072"), ("gsm8k", "#### 1,072")]
)
def test_gsm8k_answers_lose_annotations_and_end_in_the_chosen_style(tmp_path, style, last):
    write_jsonl(tmp_path / "gsm8k" / "train.jsonl", [GSM8K_ROW])
    (row,) = examples(tmp_path, "gsm8k", tmp_path / "gsm8k", answer_style=style)
    assert row["response"] == (f"She sold 48/2 = 24 to others.\nThat is 48+24 = $1,072.\n{last}")
    assert (row["id"], row["language"], row["instruction"]) == ("1", "en", GSM8K_ROW["question"])


def test_gsm8k_reads_the_split(tmp_path):
    write_jsonl(tmp_path / "gsm8k" / "test.jsonl", [GSM8K_ROW] * 2)
    assert len(examples(tmp_path, "gsm8k", tmp_path / "gsm8k", split="test")) == 2


@pytest.mark.parametrize("as_list", [True, False])
def test_metamath_reads_a_list_and_lines(tmp_path, as_list):
    rows = [
        {
            "query": f"What is {i}?",
            "response": f"It is {i}.\nThe answer is: {i}",
            "type": "GSM_Rephrased",
            "original_question": "?",
        }
        for i in range(3)
    ]
    path = tmp_path / "MetaMathQA-395K.json"
    if as_list:
        path.write_text(json.dumps(rows, indent=1))
    else:
        write_jsonl(path, rows)
    read = examples(tmp_path, "metamath", path)
    assert [row["id"] for row in read] == ["1", "2", "3"]
    assert read[2]["instruction"] == "What is 2?"
    assert read[2]["response"] == "It is 2.\nThe answer is: 2"


def test_gsm8kinstruct_takes_the_question_out_of_a_published_prompt(tmp_path):
    prompt = (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request in Bengali. Please answer in Bengali.\n\n"
        "### Instruction:\nকত?\n\nআরও?\n\n### Response:"
    )
    plain = {"query": "Wie viele?", "response": "Zwei.", "lang": "German"}
    path = write_jsonl(
        tmp_path / "g.json", [{"prompt": prompt, "chosen": "দুই।", "reject": ""}, plain]
    )
    rows = examples(tmp_path, "gsm8kinstruct", path)
    assert [(row["language"], row["instruction"], row["response"]) for row in rows] == [
        ("bn", "কত?\n\nআরও?", "দুই।"),
        ("de", "Wie viele?", "Zwei."),
    ]
    assert len(examples(tmp_path, "gsm8kinstruct", path, languages=("de",))) == 1


@pytest.mark.parametrize("form", ["tsv", "json"])
def test_mgsm_reads_both_forms_and_keeps_digit_commas(tmp_path, form):
    folder = tmp_path / "mgsm"
    if form == "tsv":
        write_lines(folder / "mgsm_de.tsv", ["Wie viel?\t114,200", "Und?\t-3"])
        write_lines(folder / "mgsm_en.tsv", ["How much?\t114,200", "And?\t-3"])
    else:
        rows = [{"query": "Wie viel?", "response": "114,200"}, {"query": "Und?", "response": -3}]
        write_jsonl(folder / "mgsm_German.json", rows)
        write_jsonl(folder / "mgsm_English.json", rows)
    rows = examples(tmp_path, "mgsm", folder)
    assert [(row["language"], row["id"], row["answer"]) for row in rows] == [
        ("de", "1", "114,200"),
        ("de", "2", "-3"),
        ("en", "1", "114,200"),
        ("en", "2", "-3"),
    ]
    assert [row["language"] for row in examples(tmp_path, "mgsm", folder, languages=("en", "de"))][
        ::2
    ] == ["en", "de"]


def test_msvamp_asks_the_question_in_its_language(tmp_path):
    folder = tmp_path / "msvamp"
    row = {"query": "how many ?", "equation": "- a b", "response": "8.0", "m_query": "Wie viele?"}
    write_jsonl(folder / "test_German.json", [row])
    write_jsonl(
        folder / "test_English.json", [{"m_query": "how many ?", "equation": "", "response": "8.0"}]
    )
    rows = examples(tmp_path, "msvamp", folder)
    assert [(row["language"], row["question"], row["answer"]) for row in rows] == [
        ("de", "Wie viele?", "8.0"),
        ("en", "how many ?", "8.0"),
    ]


def test_own_rows_may_have_ids_and_languages_and_no_instruction(tmp_path):
    rows = [
        {"instruction": "Hi", "response": "Hello", "id": "a", "language": "en"},
        {"instruction": "", "response": "plain text", "language": "sw"},
        {"instruction": "x", "response": "y"},
    ]
    path = write_jsonl(tmp_path / "own.jsonl", rows)
    read = examples(tmp_path, "jsonl", path, language="fr")
    assert [(row["id"], row["language"], row["instruction"]) for row in read] == [
        ("a", "en", "Hi"),
        ("2", "sw", ""),
        ("3", "fr", "x"),
    ]
    assert [row["id"] for row in examples(tmp_path, "jsonl", path, languages=("sw",))] == ["2"]


@pytest.mark.parametrize("text", ["[:10]", "[5:]", "[-3:]", "[2:-2]", "", "[ 1 : 4 ]", "[:]"])
def test_a_slice_means_what_it_means_in_python(tmp_path, own_data, text):
    every = examples(tmp_path, "jsonl", own_data)
    assert len(every) == 40
    expected = eval(f"every{text.replace(' ', '')}") if text else every
    assert examples(tmp_path, "jsonl", own_data, slice=text) == expected


def test_changed_content_is_another_data_set(tmp_path, own_data):
    source = {"name": "jsonl", "path": str(own_data)}
    before = load_examples(source, tmp_path / "built")
    own_data.write_text(own_data.read_text().replace("apples", "pears"))
    after = load_examples(source, tmp_path / "built")
    assert before.name != after.name
    assert "pears" in after[1]["instruction"]
    assert "apples" in before[1]["instruction"]


def build_and_count(arguments):
    return len(load_examples(*arguments))


def test_two_processes_may_build_one_data_set(tmp_path, own_data):
    source = {"name": "jsonl", "path": str(own_data)}
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        counts = pool.map(build_and_count, [(source, str(tmp_path / "built"))] * 2)
    assert counts == [40, 40]
    assert [path.name for path in (tmp_path / "built").iterdir()] == ["jsonl"]
    assert len(list((tmp_path / "built" / "jsonl").iterdir())) == 1


def test_building_imports_no_tensorflow_or_torch_and_prints_nothing(tmp_path, own_data):
    program = (
        "import sys\n"
        "from qalign_jax.data import batches, packing, tokenizer\n"
        "from qalign_jax.data.examples import load_examples\n"
        f"load_examples({{'name': 'jsonl', 'path': {str(own_data)!r}}}, {str(tmp_path)!r})[0]\n"
        "assert not {'tensorflow', 'torch'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == ""


def test_the_real_benchmarks_have_their_published_sizes(tmp_path, real_data):
    for name, folder, count in (
        ("mgsm", "mgsm/tsv", 11 * 250),
        ("mgsm", "mgsm/qalign_json", 11 * 250),
        ("msvamp", "msvamp", 10 * 1000),
    ):
        source = {"name": name, "path": str(real_data / folder)}
        assert len(load_examples(source, tmp_path, builder_of(name))) == count
