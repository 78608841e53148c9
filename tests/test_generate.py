"""The generate command: a stage's folder and a Hugging Face directory, interruptions, mistakes."""

import dataclasses
import json
import subprocess
import sys

import jax
import pytest

from qalign_jax.checkpoints.model import Card, Model, describe_model, save_model
from qalign_jax.checkpoints.record import Record, write_record
from qalign_jax.data.prompts import render
from qalign_jax.data.tokenizer import load_tokenizer, train_sentencepiece
from qalign_jax.decoding.combine import ProxyTuning
from qalign_jax.decoding.engine import Engine
from qalign_jax.decoding.sampling import Sampling
from qalign_jax.generate import Request, generate, read_prompts
from qalign_jax.models.config import Execution, LlamaConfig
from qalign_jax.models.llama import Llama
from qalign_jax.models.params import init_params
from tests.reference import to_transformers

CONFIG = LlamaConfig(
    vocab_size=300,
    d_model=32,
    n_layers=2,
    n_heads=2,
    n_kv_heads=2,
    d_ff=64,
    head_size=16,
    max_length=96,
    init_scale=0.3,
)
F32 = Execution(dtype="float32")
ROWS = [
    {"prompt": "Tom has", "id": "a"},
    {"question": "How many {apples}?", "language": "en"},
    {"prompt": "wie viele"},
    {"question": "多少?"},
]
NEW = 8
SAMPLED = Sampling(temperature=1.0, top_p=0.9, seed=3)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_sentencepiece(["Tom has three apples.", "wie viele Äpfel"] * 9, 300, path)
    return load_tokenizer(path)


def params_of(seed):
    return jax.jit(init_params, static_argnums=0)(CONFIG, jax.random.key(seed))


@pytest.fixture(scope="module")
def stages(tmp_path_factory, tokenizer):
    """The folders of three stages with random weights, as training writes them."""
    root = tmp_path_factory.mktemp("stages")
    folders = [root / name for name in ("large", "expert", "antiexpert")]
    for seed, folder in enumerate(folders):
        save_model(folder, Model(CONFIG, F32, params_of(seed), tokenizer, "short"))
        write_record(folder, Record({"seed": seed}, {"data": "none"}))
    return [str(folder) for folder in folders]


@pytest.fixture
def prompts(tmp_path):
    return write(tmp_path / "prompts.jsonl", ROWS)


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def expected(tokenizer, seeds=(0,), **options):
    """The rows that the engine gives, from the same weights."""
    engine = Engine(
        [(Llama(CONFIG, F32), params_of(seed)) for seed in seeds], eos_ids=(2,), **options
    )
    texts = [row.get("prompt") or render("short", row["question"]) for row in ROWS]
    ids = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in texts]
    answers = [answer.tokens for answer in sorted(engine.generate(ids, NEW))]
    return [
        row | {"output": tokenizer.decode(ids), "tokens": ids}
        for row, ids in zip(ROWS, answers, strict=True)
    ]


def test_the_command_adds_output_and_tokens_in_order(stages, tokenizer, prompts, tmp_path):
    output = tmp_path / "out" / "answers.jsonl"
    done = command(
        f"--checkpoint={stages[0]}",
        f"--prompts={prompts}",
        f"--output={output}",
        f"--max_new_tokens={NEW}",
    )
    assert done.returncode == 0, done.stderr
    rows = read(output)
    assert rows == expected(tokenizer)
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["prompts"] == 4
    assert summary["tokens"] == sum(len(row["tokens"]) for row in rows)
    assert summary["tokens_per_second"] > 0 and summary["seconds"] > 0
    assert "answer 4 of 4" in done.stderr
    assert [path.name for path in output.parent.iterdir()] == ["answers.jsonl"]


def test_a_mistake_is_one_line_and_status_2(stages, prompts, tmp_path):
    files = (f"--prompts={prompts}", f"--output={tmp_path / 'o'}", f"--checkpoint={stages[0]}")
    done = command(*files, f"--expert={stages[1]}")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: --expert without --antiexpert")
    done = command(*files, "--alpha=0.5")
    assert done.returncode == 2 and "--alpha without --expert" in done.stderr


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "qalign_jax.generate", *arguments], capture_output=True, text=True
    )


def test_a_hugging_face_directory_answers_the_same(tokenizer, prompts, tmp_path):
    to_transformers(CONFIG, params_of(0)).save_pretrained(tmp_path / "hf")
    tokenizer.save(tmp_path / "hf")
    output = tmp_path / "answers.jsonl"
    request = Request(str(tmp_path / "hf"), template="short", max_new_tokens=NEW, dtype="float32")
    generate(request, prompts, output)
    assert read(output) == expected(tokenizer)


def test_the_expert_steers(stages, tokenizer, prompts, tmp_path):
    output = tmp_path / "answers.jsonl"
    request = Request(*stages, alpha=0.7, max_new_tokens=NEW)
    generate(request, prompts, output)
    assert read(output) == expected(tokenizer, (0, 1, 2), combine=ProxyTuning(0.7))


def interrupt_once(monkeypatch):
    """Interrupts the first decoding after two answers; returns the numbers that are asked."""
    asked = []
    original = Engine.generate

    def interrupted(self, prompts, max_new_tokens, numbers):
        asked.append(list(numbers))
        answers = original(self, prompts, max_new_tokens, numbers)
        return answers if len(asked) > 1 else stop_after(answers, 2)

    def stop_after(answers, count):
        for _ in range(count):
            yield next(answers)
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "generate", interrupted)
    return asked


def test_an_interrupted_run_goes_on_where_it_stopped(stages, prompts, tmp_path, monkeypatch):
    request = Request(stages[0], max_new_tokens=NEW, sampling=SAMPLED)
    generate(request, prompts, tmp_path / "whole.jsonl")
    whole = read(tmp_path / "whole.jsonl")
    output = tmp_path / "answers.jsonl"
    asked = interrupt_once(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        generate(request, prompts, output)
    assert not output.exists()
    partial = tmp_path / "answers.jsonl.partial"
    partial.write_text(partial.read_text() + '{"id": "3", "tok')  # cut off while writing
    with pytest.raises(ValueError, match=r"other settings: sampling.seed was 3, is 4"):
        other = dataclasses.replace(SAMPLED, seed=4)
        generate(dataclasses.replace(request, sampling=other), prompts, output)
    with pytest.raises(ValueError, match=r"other settings: .*weights"):
        generate(dataclasses.replace(request, checkpoint=stages[1]), prompts, output)
    summary = generate(dataclasses.replace(request, slots=2), prompts, output)
    assert len(asked[1]) == 2  # the other two were kept
    assert read(output) == whole
    assert summary["tokens"] == sum(len(row["tokens"]) for row in whole)
    assert not partial.exists()


def test_models_that_read_prompts_differently_are_refused(stages, prompts, tmp_path):
    train_sentencepiece(["ganz andere Stücke"] * 9, 290, tmp_path / "tokenizer.model")
    odd = load_tokenizer(tmp_path / "tokenizer.model")
    describe_model(tmp_path / "odd", Card(CONFIG, F32, "short"), odd)
    (tmp_path / "odd" / "checkpoints").symlink_to(f"{stages[1]}/checkpoints")
    request = Request(stages[0], str(tmp_path / "odd"), stages[2])
    with pytest.raises(
        ValueError, match=r"the tokenizers of .*large and .*odd differ: the piece \d+ is"
    ):
        generate(request, prompts, tmp_path / "answers.jsonl")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a"}\n{"prompt": \n', ":2: not JSON"),
        ('{"prompt": "a"}\n\n{"text": "b"}\n', ":3: expected an object with either"),
        ('{"prompt": "a", "question": "b"}\n', ":1: expected an object with either"),
        ('["a"]\n', ":1: expected an object"),
        ('{"prompt": " "}\n', ":1: an empty prompt"),
        ('{"question": 3}\n', ":1: an empty prompt, or one that is no text: 3"),
        ("\n", "holds no prompts"),
    ],
)
def test_bad_prompts_are_named_by_line(tmp_path, text, message):
    path = tmp_path / "prompts.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_prompts(path)


def test_a_missing_prompts_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        read_prompts(tmp_path / "absent.jsonl")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"expert": "b"}, "--expert without --antiexpert"),
        ({"antiexpert": "b"}, "--antiexpert without --expert"),
        ({"dtype": "float16"}, "--dtype=float16"),
        ({"max_new_tokens": 0}, "--max_new_tokens=0"),
        ({"slots": 0}, "--slots=0"),
        ({"template": "papre"}, "papre"),
    ],
)
def test_bad_requests_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Request("a", **settings)


def test_the_prompts_are_not_overwritten(prompts):
    with pytest.raises(ValueError, match="the file of the prompts"):
        generate(Request("a"), prompts, prompts)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("prompts.jsonl", "--trace=.*prompts.jsonl is the file of the prompts"),
        ("answers.jsonl", "--trace=.*answers.jsonl is the file of --output"),
        (
            "answers.jsonl.partial",
            "--trace=.*partial is the file of answers that are kept for a re",
        ),
        ("", "--trace=.* is a folder; name a file"),
    ],
)
def test_a_trace_that_would_replace_another_file_is_refused(name, message, prompts, tmp_path):
    with pytest.raises(ValueError, match=message):
        generate(Request("a"), prompts, tmp_path / "answers.jsonl", tmp_path / name)


COLUMNS = "tokens text base_tokens base_text base_probability probability moved".split()


def test_the_command_goes_on_with_a_trace_where_it_was_interrupted(
    stages, tokenizer, prompts, tmp_path, monkeypatch
):
    request = Request(*stages, alpha=0.7, max_new_tokens=NEW)
    generate(request, prompts, tmp_path / "whole.jsonl", tmp_path / "whole_trace.jsonl")
    output, trace = tmp_path / "answers.jsonl", tmp_path / "traces" / "trace.jsonl"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        interrupt_once(patched)
        generate(request, prompts, output, trace)
    assert not trace.exists()
    with pytest.raises(ValueError, match=r"other settings: trace was true, is \(absent\)"):
        generate(request, prompts, output)
    directories = dict(zip(("checkpoint", "expert", "antiexpert"), stages, strict=True))
    flags = directories | {"prompts": prompts, "output": output, "trace": trace, "alpha": 0.7}
    flags["max_new_tokens"] = NEW
    done = command(*(f"--{name}={value}" for name, value in flags.items()))
    assert done.returncode == 0, done.stderr
    assert "answer 4 of 4" in done.stderr
    rows, traces = read(output), read(trace)
    assert rows == expected(tokenizer, (0, 1, 2), combine=ProxyTuning(0.7))
    assert traces == read(tmp_path / "whole_trace.jsonl")
    for row, columns in zip(rows, traces, strict=True):
        assert list(columns) == COLUMNS
        assert columns["tokens"] == row["tokens"] and "".join(columns["text"]) == row["output"]
        assert {len(column) for column in columns.values()} == {len(row["tokens"])}
        assert all(0 <= p <= 1 for p in columns["base_probability"] + columns["probability"])
    moved = [number for columns in traces for number in columns["moved"]]
    assert max(moved) > 0.01 and min(moved) >= -1


def test_answers_kept_without_a_trace_are_refused_with_one(stages, prompts, tmp_path, monkeypatch):
    request = Request(stages[0], max_new_tokens=NEW)
    output = tmp_path / "answers.jsonl"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        interrupt_once(patched)
        generate(request, prompts, output)
    with pytest.raises(ValueError, match=r"trace was \(absent\), is true. Delete that file"):
        generate(request, prompts, output, tmp_path / "trace.jsonl")


DAMAGES = {
    "no tokens": {"tokens": None},
    "tokens as text": {"tokens": "12"},
    "a number of tokens": {"tokens": 12},
    "a token that is none": {"tokens": [1, 2.5]},
    "an id above the vocabulary": {"tokens": [CONFIG.vocab_size]},
    "an id below it": {"tokens": [-1]},
    "an id as large as can be": {"tokens": [10**18]},
    "another id": {"id": 1},
    "columns of unequal length": {"trace": {"text": ["a"]}},
}


@pytest.mark.parametrize("case", DAMAGES)
def test_answers_that_were_changed_by_hand_are_refused_by_their_line(
    case, stages, prompts, tmp_path, monkeypatch
):
    request = Request(stages[0], max_new_tokens=NEW)
    output, trace = tmp_path / "answers.jsonl", tmp_path / "trace.jsonl"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        interrupt_once(patched)
        generate(request, prompts, output, trace)
    partial = tmp_path / "answers.jsonl.partial"
    rows = read(partial)
    damage = DAMAGES[case]
    for key, value in damage.items():
        rows[-1][key] = rows[-1][key] | value if isinstance(value, dict) else value
    write(partial, rows)
    with pytest.raises(
        ValueError, match=rf"answers\.jsonl\.partial:{len(rows)}: .*; delete the line"
    ):
        generate(request, prompts, output, trace)
    assert not output.exists()
