"""Evaluation of a system: scores, files, resuming, and refusal of other settings."""

import json

import pytest

from qalign_jax.decoding.system import Answer
from qalign_jax.decoding.trace import Trace
from qalign_jax.evaluation import benchmarks
from qalign_jax.evaluation.runner import evaluate

SETTINGS = {"model": "abc123", "dtype": "bfloat16", "alpha": 1.0}
BENCHMARK = benchmarks.get("mgsm")


def problems_of(languages=("de", "en"), count=4):
    return [
        {"id": str(i), "language": language, "question": f"{language}? {{{i}}}", "answer": str(i)}
        for language in languages
        for i in range(1, count + 1)
    ]


class Answering:
    """A deterministic generator: answers the number in the braces, last prompt first.

    Answers to German questions with even numbers are wrong by their sign, which only the sound
    reader reads.
    """

    def __init__(self, stop_after=None):
        self.prompts, self.limit, self.stop_after = [], None, stop_after

    def __call__(self, prompts, max_new_tokens, turns=None):
        self.prompts, self.limit = list(prompts), max_new_tokens
        for done, (index, prompt) in enumerate(reversed(list(enumerate(prompts)))):
            if done == self.stop_after:
                raise KeyboardInterrupt
            number = int(prompt.split("{")[1].split("}")[0])
            sign = "-" if "de?" in prompt and number % 2 == 0 else ""
            yield Answer(index, f"Text\u2028more. The answer is {sign}{number}.", [5] * 7)


def run(directory, generate, problems=None, settings=SETTINGS, **more):
    return evaluate(
        "qalign",
        BENCHMARK,
        problems or problems_of(),
        generate,
        "paper",
        directory,
        settings,
        **more,
    ).result


def rows(directory, language):
    path = directory / "qalign" / "mgsm" / f"{language}.jsonl"
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def test_scores_have_each_language_both_means_and_both_readers(tmp_path):
    generate = Answering()
    result = run(tmp_path, generate)
    everything = {"de": 100.0, "en": 100.0, "average": 100.0, "non_english": 100.0}
    in_english = {"de": 0.0, "en": 100.0, "average": 50.0, "non_english": 0.0}
    assert result == everything | {
        "intervals": {name: [51.01, 100.0] for name in everything},
        "sound": {"de": 50.0, "en": 100.0, "average": 75.0, "non_english": 50.0},
        "consistency": {
            "prediction": {"de": 100.0, "non_english": 100.0},
            "language": in_english,
        },
    }
    assert generate.limit == 600
    assert len(generate.prompts) == 8  # one stream for all languages
    assert generate.prompts[0].endswith("### Instruction:\nde? {1}\n\n### Response:")


def test_files_hold_a_header_and_the_answers_in_the_problems_order(tmp_path):
    run(tmp_path, Answering())
    header, *answers = rows(tmp_path, "de")
    assert header["header"]["settings"] == SETTINGS
    assert header["header"]["max_new_tokens"] == 600
    assert "{instruction}" in header["header"]["template"]
    assert [answer["id"] for answer in answers] == ["1", "2", "3", "4"]
    assert answers[1] == {
        "id": "2",
        "language": "de",
        "question": "de? {2}",
        "prompt": answers[1]["prompt"],
        "output": "Text\u2028more. The answer is -2.",
        "answer": "2",
        "tokens": 7,
        "prediction": 2.0,
        "correct": True,
        "sound_prediction": -2.0,
        "sound_correct": False,
    }
    assert not list(tmp_path.rglob("*.tmp*"))


def test_a_finished_evaluation_is_not_run_again(tmp_path):
    first = run(tmp_path, Answering())
    before = (tmp_path / "qalign" / "mgsm" / "de.jsonl").read_bytes()
    again = Answering()
    assert run(tmp_path, again) == first
    assert again.prompts == []
    assert (tmp_path / "qalign" / "mgsm" / "de.jsonl").read_bytes() == before


@pytest.mark.parametrize("stop_after", [0, 1, 3, 7])
def test_an_interrupted_evaluation_loses_no_answer_and_ends_the_same(tmp_path, stop_after):
    whole = run(tmp_path / "whole", Answering())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", Answering(stop_after))
    resumed = Answering()
    assert run(tmp_path / "cut", resumed) == whole
    assert len(resumed.prompts) == 8 - stop_after
    for language in ("de", "en"):
        assert rows(tmp_path / "cut", language) == rows(tmp_path / "whole", language)


@pytest.mark.parametrize("cut", [1, 2, 30, 200])
def test_a_torn_last_line_is_mended(tmp_path, cut):
    whole = run(tmp_path, Answering())
    path = tmp_path / "qalign" / "mgsm" / "de.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[:-cut])
    resumed = Answering()
    assert run(tmp_path, resumed) == whole
    assert len(resumed.prompts) == (0 if cut == 1 else 1)
    assert path.read_bytes() == content or cut == 1


def test_a_file_cut_anywhere_is_mended(tmp_path):
    whole = run(tmp_path, Answering())
    path = tmp_path / "qalign" / "mgsm" / "de.jsonl"
    content = path.read_bytes()
    for size in range(0, len(content), 97):
        path.write_bytes(content[:size])
        assert run(tmp_path, Answering()) == whole
        assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"settings": SETTINGS | {"model": "other"}}, 'settings.model was "abc123", is "other"'),
        ({"settings": {"model": "abc123", "dtype": "bfloat16"}}, "settings.alpha was 1.0, is"),
        ({"max_new_tokens": 5}, "max_new_tokens was 600, is 5"),
    ],
)
def test_other_settings_are_refused_before_decoding(tmp_path, change, named):
    run(tmp_path, Answering())
    generate = Answering()
    with pytest.raises(ValueError, match="Delete that file") as raised:
        run(tmp_path, generate, **change)
    assert named in str(raised.value) and "de.jsonl" in str(raised.value)
    assert generate.prompts == []


def test_a_changed_question_under_the_same_id_is_refused(tmp_path):
    run(tmp_path, Answering())
    problems = problems_of()
    problems[2]["question"] += " changed {3}"
    with pytest.raises(ValueError, match="problem 3 was another question"):
        run(tmp_path, Answering(), problems)


def test_more_problems_answer_only_the_new_ones_and_fewer_keep_the_old_ones(tmp_path):
    run(tmp_path, Answering(), problems_of(count=2))
    generate = Answering()
    run(tmp_path, generate, problems_of(count=4))
    assert len(generate.prompts) == 4
    fewer = Answering()
    assert run(tmp_path, fewer, problems_of(count=1))["sound"]["de"] == 100.0
    assert fewer.prompts == []
    assert [row["id"] for row in rows(tmp_path, "de")[1:]] == ["1", "2", "3", "4"]


def test_a_damaged_line_inside_a_file_is_named(tmp_path):
    run(tmp_path, Answering())
    path = tmp_path / "qalign" / "mgsm" / "de.jsonl"
    lines = path.read_text().split("\n")
    lines[2] = lines[2][:20]
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"de\.jsonl:3: not JSON.*delete the line"):
        run(tmp_path, Answering())


def test_a_process_that_does_not_write_answers_too_and_leaves_no_file(tmp_path):
    generate = Answering()
    assert run(tmp_path, generate, write=False) == {}
    assert len(generate.prompts) == 8
    assert not list(tmp_path.iterdir())


def test_telugu_is_reported_and_not_averaged(tmp_path):
    class Wrong(Answering):
        def __call__(self, prompts, max_new_tokens):
            for answer in super().__call__(prompts, max_new_tokens):
                telugu = "te?" in prompts[answer.number]
                yield answer._replace(text="0") if telugu else answer

    result = run(tmp_path, Wrong(), problems_of(("de", "te", "en")))
    assert (result["te"], result["average"], result["non_english"]) == (0.0, 100.0, 100.0)
    assert result["intervals"]["te"] == [0.0, 48.99]
    assert result["intervals"]["average"] == result["intervals"]["de"] == [51.01, 100.0]


@pytest.mark.parametrize(
    ("problems", "message"),
    [
        ([], "no problems"),
        (problems_of(count=1) * 2, "the id occurs twice"),
        ([{"id": "1", "language": "de", "question": "?", "answer": "x"}], "holds no number"),
        ([{"id": "1", "language": "it", "question": "?", "answer": "1"}], "has no language 'it'"),
    ],
)
def test_bad_problems_are_refused(tmp_path, problems, message):
    with pytest.raises(ValueError, match=message):
        evaluate("s", BENCHMARK, problems, Answering(), "paper", tmp_path, SETTINGS)


class Traced(Answering):
    """Answers with a trace of seven tokens, as Answering's tokens are."""

    def __call__(self, prompts, max_new_tokens):
        halves = [0.5] * 7
        for answer in super().__call__(prompts, max_new_tokens):
            ids, texts = [answer.number] * 7, ["a"] * 7
            trace = Trace(ids, texts, ids, texts, halves, halves, halves)
            yield answer._replace(trace=trace)


def test_traces_stand_in_the_lines_of_answers_and_stay_there_after_an_interruption(tmp_path):
    settings = SETTINGS | {"trace": True}
    result = run(tmp_path / "whole", Traced(), settings=settings)
    assert result == run(tmp_path / "untraced", Answering())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", Traced(3), settings=settings)
    assert run(tmp_path / "cut", Traced(), settings=settings) == result
    for name in ("whole", "cut"):
        header, *lines = rows(tmp_path / name, "en")
        assert header["header"]["settings"]["trace"] is True
        traces = [line.pop("trace") for line in lines]
        assert lines == rows(tmp_path / "untraced", "en")[1:]
        assert [trace["moved"] for trace in traces] == [[0.5] * 7] * 4
        assert [trace["base_text"] for trace in traces] == [["a"] * 7] * 4


def test_answers_made_without_a_trace_are_refused_with_one(tmp_path):
    run(tmp_path, Answering())
    with pytest.raises(ValueError, match=r"trace was \(absent\), is true. Delete that file"):
        run(tmp_path, Traced(), settings=SETTINGS | {"trace": True})


def test_a_generator_that_leaves_a_prompt_unanswered_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="left 8 prompts"):
        run(tmp_path, lambda prompts, limit: iter(()))
    with pytest.raises(RuntimeError, match="answered prompt 0 twice"):
        run(tmp_path, lambda prompts, limit: iter([Answer(0, "1", [5])] * 2))


class Choosing:
    """Generates "B" for German and "A" for other questions; finds the second choice likelier."""

    def __init__(self, stop_after=None):
        self.weighed, self.stop_after = [], stop_after

    def __call__(self, prompts, max_new_tokens):
        for index, prompt in enumerate(prompts):
            yield Answer(index, "B" if "de?" in prompt else "A", [5])

    def log_likelihoods(self, prompts, choices):
        self.weighed = list(prompts)
        for index, row in enumerate(choices):
            if index == self.stop_after:
                raise KeyboardInterrupt
            yield index, [-2.0, -1.0, *[-3.0] * (len(row) - 2)]


def choose(directory, generate):
    problems = [
        problem | {"answer": "A", "choices": ["A", "B", "C"]} for problem in problems_of(count=2)
    ]
    benchmark = benchmarks.get("xcsqa")
    return evaluate("s", benchmark, problems, generate, "short", directory, SETTINGS).result


def test_multiple_choice_is_scored_as_generated_and_by_likelihood(tmp_path):
    result = choose(tmp_path, Choosing())
    assert {key: result[key] for key in ("de", "en", "average")} == {
        "de": 0.0, "en": 100.0, "average": 50.0,
    }  # fmt: skip
    assert result["likelihood"]["average"] == result["likelihood_per_character"]["average"] == 0.0
    assert result["consistency"] == {"prediction": {"de": 0.0, "non_english": 0.0}}
    lines = (tmp_path / "s" / "xcsqa" / "likelihood" / "de.jsonl").read_text().splitlines()
    first = json.loads(lines[1])
    assert first["log_likelihoods"] == [-2.0, -1.0, -3.0] and first["prediction"] == "B"


@pytest.mark.parametrize("stop_after", [0, 3])
def test_interrupted_likelihoods_go_on_where_they_stopped(tmp_path, stop_after):
    whole = choose(tmp_path / "whole", Choosing())
    with pytest.raises(KeyboardInterrupt):
        choose(tmp_path / "cut", Choosing(stop_after))
    resumed = Choosing()
    assert choose(tmp_path / "cut", resumed) == whole
    assert len(resumed.weighed) == 4 - stop_after
