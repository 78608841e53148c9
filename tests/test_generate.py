"""The generate command: a stage's folder and a Hugging Face directory, interruptions, mistakes."""

import dataclasses
import json
import subprocess
import sys
import time

import jax
import pytest

from qalign_jax.checkpoints.card import Card, describe_model
from qalign_jax.checkpoints.model import Model, load_model, save_model
from qalign_jax.checkpoints.record import Record, write_record
from qalign_jax.convert import convert
from qalign_jax.data.prompts import render
from qalign_jax.data.tokenizer import load_tokenizer, train_sentencepiece
from qalign_jax.decoding.combine import ProxyTuning
from qalign_jax.decoding.engine import Engine
from qalign_jax.decoding.sampling import Sampling
from qalign_jax.generate import Request, generate, read_prompts
from qalign_jax.models.adapter import Adapter
from qalign_jax.models.config import Execution, LlamaConfig
from qalign_jax.models.llama import Llama
from qalign_jax.models.params import init_params
from qalign_jax.models.trainable import Trainable
from tests import stages as folders
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
    done = command(*files, "--weights_dtype=int8", "--cache_dtype=int4")
    assert done.returncode == 2 and "cache_dtype='int4': expected int8, or" in done.stderr


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


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, model_file):
    """A large model, and a small one with an adapter: a stage's, as PEFT has it, and merged."""
    root, tokenizer = tmp_path_factory.mktemp("adapters"), load_tokenizer(model_file)
    for seed, name in enumerate(("large", "small", "other")):
        folders.write_whole(root / name, tokenizer, seed)
    folders.write_part(root / "tuned", root / "small", Trainable(Adapter(4, alpha=8)), tokenizer)
    convert(root / "tuned", root / "peft", peft=True, mesh="single")
    save_model(root / "merged", load_model(root / "tuned"))
    write_record(root / "merged", Record({}, {"data": "none"}))
    wider = dataclasses.replace(folders.CONFIG, d_ff=256)
    model = Model(wider, F32, init_params(wider, jax.random.key(0)), tokenizer, "short")
    save_model(root / "wider", model)
    write_record(root / "wider", Record({}, {"data": "none"}))
    return root


def answers(root, prompts, *names):
    """The output for these names of models, in which {} is the folder that they lie in."""
    request = Request(*(name.format(root) for name in names), max_new_tokens=NEW)
    generate(request, prompts, root / "answers.jsonl")
    return read(root / "answers.jsonl")


@pytest.mark.slow
def test_an_adapter_of_the_antiexpert_steers_as_the_merged_expert_does(adapters, prompts):
    roles = "{0}/large", "{0}/merged", "{0}/small"
    expected = answers(adapters, prompts, *roles)
    assert expected != answers(adapters, prompts, "{0}/large")
    for expert in ("{0}/tuned", "{0}/small+{0}/peft"):
        assert answers(adapters, prompts, roles[0], expert, roles[2]) == expected


def test_a_base_with_an_adapter_answers_as_the_merged_model(adapters, prompts):
    expected = answers(adapters, prompts, "{0}/merged")
    assert answers(adapters, prompts, "{0}/small+{0}/peft") == expected
    assert answers(adapters, prompts, "{0}/small") != expected


ONE = "expected one of PEFT's or a stage's"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["{0}/peft"], r"peft is a LoRA adapter; name it behind its base, as BASE\+{0}/peft"),
        (["{0}/small+{0}/absent"], f"{{0}}/absent: no adapter here; {ONE}"),
        (["{0}/small+{0}/other"], f"{{0}}/other: no adapter here; {ONE}"),
        (["{0}/absent+{0}/peft"], "{0}/absent: no model here"),
        (["{0}/small+{0}/tuned+{0}/peft"], r"names two adapters; expected BASE\+ADAPTER. Merge"),
        (["{0}/other+{0}/tuned"], "{0}/other has .*, and is another model. Name the base that"),
        (["{0}/wider+{0}/tuned"], "{0}/tuned is an adapter of a model of another shape"),
        (["{0}/wider+{0}/peft"], r"down_proj.lora_A.weight has the shape \(4, 160\); the base"),
        (
            ["{0}/large", "{0}/other+{0}/tuned", "{0}/small"],
            "{0}/other has .*, and is another model. Name the base that",
        ),
        (["{0}/large", "{0}/wider+{0}/peft", "{0}/wider"], "Is it the adapter's base"),
    ],
)
def test_an_adapter_without_its_base_is_refused_before_weights_are_read(
    names, message, adapters, prompts, monkeypatch
):
    monkeypatch.setattr("qalign_jax.decoding.system.load_model", None)
    with pytest.raises(ValueError, match=message.format(adapters)):
        answers(adapters, prompts, *names)


@pytest.mark.slow
def test_drafts_change_no_answer_and_are_counted_in_the_last_line(stages, prompts, tmp_path):
    counted = {}
    for name, drafts in {
        "plain": {"draft_tokens": "0"},
        "expert": {},
        "model": {"draft": stages[0], "draft_tokens": "3"},
        "lookup": {"draft": "lookup", "draft_tokens": "2"},
    }.items():
        request = Request(*stages, alpha=0.0, max_new_tokens=NEW, sampling=SAMPLED, **drafts)
        counted[name] = generate(request, prompts, tmp_path / name)
        assert read(tmp_path / name) == read(tmp_path / "plain")
    assert not {"tokens_per_round", "acceptance"} & counted["plain"].keys()
    assert counted["expert"]["tokens_per_round"] >= 1
    assert 0 <= counted["lookup"]["acceptance"] <= 1
    # with alpha 0 the large model drafts for itself
    assert counted["model"]["acceptance"] == 1.0 and counted["model"]["tokens_per_round"] > 2


def test_drafts_may_differ_where_an_interrupted_run_goes_on(stages, prompts, tmp_path, monkeypatch):
    request = Request(stages[0], max_new_tokens=NEW, draft="lookup", draft_tokens="2")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        interrupt_once(patched)
        generate(request, prompts, tmp_path / "answers.jsonl")
    plain = Request(stages[0], max_new_tokens=NEW)
    generate(plain, prompts, tmp_path / "plain.jsonl")
    generate(plain, prompts, tmp_path / "answers.jsonl")
    assert read(tmp_path / "answers.jsonl") == read(tmp_path / "plain.jsonl")


def test_int8_shapes_the_answers_and_so_is_in_the_header_where_it_is_asked_for(
    stages, tokenizer, prompts, tmp_path, monkeypatch
):
    output, partial = tmp_path / "answers.jsonl", tmp_path / "answers.jsonl.partial"
    request = Request(stages[0], max_new_tokens=NEW, weights_dtype="int8", cache_dtype="int8")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        interrupt_once(patched)
        generate(request, prompts, output)
    settings = read(partial)[0]["header"]
    assert settings["weights_dtype"] == settings["cache_dtype"] == "int8"
    wide = dataclasses.replace(request, weights_dtype="", cache_dtype="")
    with pytest.raises(ValueError, match=r'cache_dtype was "int8", is \(absent\); weights_dtype'):
        generate(wide, prompts, output)
    generate(request, prompts, output)
    assert read(output) == expected(tokenizer, weights_dtype="int8", cache_dtype="int8")


def interrupt_once(monkeypatch):
    """Interrupts the first decoding after two answers; returns the numbers that are asked."""
    asked = []
    original = Engine.generate

    def interrupted(self, prompts, max_new_tokens, numbers, **options):
        asked.append(list(numbers))
        answers = original(self, prompts, max_new_tokens, numbers, **options)
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
    output.write_text("an earlier run's\n")
    asked = interrupt_once(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        generate(request, prompts, output)
    partial = tmp_path / "answers.jsonl.partial"
    assert {row["id"] for row in read(partial)[1:]} == {"1", "3"}  # the longest come first
    assert output.read_text() == ""
    for file in (output, partial):
        file.write_text(file.read_text() + '{"id": "3", "tok')  # cut off while writing
    with pytest.raises(ValueError, match=r"other settings: sampling.seed was 3, is 4"):
        other = dataclasses.replace(SAMPLED, seed=4)
        generate(dataclasses.replace(request, sampling=other), prompts, output)
    with pytest.raises(ValueError, match=r"other settings: .*weights"):
        generate(dataclasses.replace(request, checkpoint=stages[1]), prompts, output)
    summary = generate(dataclasses.replace(request, slots=2), prompts, output)
    assert asked[1] == [0, 2]  # the other two were kept
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert summary["tokens"] == sum(len(row["tokens"]) for row in whole)
    assert not partial.exists()


def test_the_output_grows_by_answers_before_which_all_others_have_ended(
    stages, tmp_path, monkeypatch
):
    texts = ("Tom has three apples.", "wie", "Tom has", "wie viele Äpfel", "Tom", "wie viele Ä")
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": text} for text in texts])
    output, partial = tmp_path / "answers.jsonl", tmp_path / "answers.jsonl.partial"
    output.write_text("an earlier run's\n")
    original, ended, grown = Engine.generate, [], []

    def watched(*args, **options):
        for answer in original(*args, **options):
            grown.append(output.read_text(encoding="utf-8"))
            ended.append(answer.number)
            assert len(read(partial)) == len(ended)  # under the header
            yield answer

    monkeypatch.setattr(Engine, "generate", watched)
    generate(Request(stages[0], max_new_tokens=NEW, slots=1), prompts, output)
    lines = output.read_text(encoding="utf-8").splitlines(keepends=True)
    assert [json.loads(line)["prompt"] for line in lines] == list(texts)
    counts = [next(n for n in range(7) if n not in ended[:place]) for place in range(6)]
    assert grown == ["".join(lines[:count]) for count in counts]
    assert ended == [0, 3, 2, 1, 5, 4] and counts == [0, 1, 1, 1, 4, 4]
    assert not partial.exists()


@pytest.mark.slow
def test_a_command_that_is_killed_leaves_whole_lines_and_goes_on(stages, tmp_path):
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": "Tom has " * n} for n in range(1, 31)])
    request = Request(stages[0], max_new_tokens=NEW)
    generate(request, prompts, tmp_path / "whole.jsonl")
    whole, output = (tmp_path / "whole.jsonl").read_bytes(), tmp_path / "answers.jsonl"
    line = [sys.executable, "-m", "qalign_jax.generate", f"--checkpoint={stages[0]}", "--slots=1"]
    line += [f"--prompts={prompts}", f"--output={output}", f"--max_new_tokens={NEW}"]
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not (output.exists() and output.read_bytes()):
            time.sleep(0.01)
        process.kill()
    left, partial = output.read_bytes(), tmp_path / "answers.jsonl.partial"
    assert left and whole.startswith(left) and left.endswith(b"\n")
    killed_before_its_end = partial.exists()
    assert killed_before_its_end or left == whole
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ("of 30 answers are there" in done.stderr) == killed_before_its_end
    assert output.read_bytes() == whole and not partial.exists()


def test_a_mesh_that_does_not_divide_a_model_is_not_called_damage(stages, prompts, tmp_path):
    message = r"'heads' of length \d cannot be split in 8 equal parts"
    with pytest.raises(ValueError, match=message) as refused:
        generate(Request(stages[0], mesh="tensor:8"), prompts, tmp_path / "answers.jsonl")
    assert "damaged" not in str(refused.value)


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
        ({"weights_dtype": "int4"}, "weights_dtype='int4': expected int8, or nothing"),
        ({"cache_dtype": "bfloat16"}, "cache_dtype='bfloat16': expected int8, or nothing"),
        ({"max_new_tokens": 0}, "--max_new_tokens=0"),
        ({"slots": -1}, "--slots=-1"),
        (
            {"alpha": 1e39, "expert": "b", "antiexpert": "c"},
            "alpha=1e\\+39: expected a number from -1000 to 1000",
        ),
        ({"draft_tokens": "17"}, "draft_tokens=17: expected auto, or a whole number from 0"),
        ({"draft_tokens": "nan"}, "draft_tokens='nan': expected auto, or a whole number from 0"),
        ({"draft_tokens": "4"}, "draft_tokens=4 without a draft: name a model, or lookup"),
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
    assert output.exists() and not trace.exists()
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
    assert output.read_text() == ""
