"""Everything that the package reads: how a small whole input is made, and how it is read.

A reader is one entry of READERS. `read` raises a ValueError, or returns; what it returns must be
sane, which it asserts where that says something.
"""

import dataclasses
import json
import math
from collections.abc import Callable

import jax
import numpy as np

from qalign_jax import files
from qalign_jax.analysis import data_scale, reasoning
from qalign_jax.checkpoints import hf_config, hf_weights, lora
from qalign_jax.checkpoints.card import (
    Card,
    describe_model,
    fingerprint,
    read_card,
    tokenizer_directory,
)
from qalign_jax.checkpoints.lora import MergedTensors
from qalign_jax.checkpoints.model import Model, load_model, save_model
from qalign_jax.checkpoints.part import Part
from qalign_jax.checkpoints.record import Record, read_record, write_record
from qalign_jax.checkpoints.safetensors import TensorFiles, write_files
from qalign_jax.data.tokenizer import PROBES, load_tokenizer, train_sentencepiece
from qalign_jax.decoding.system import Answer
from qalign_jax.evaluation import benchmarks, predictions, runner
from qalign_jax.evaluation.records import AnswerFile, read_results
from qalign_jax.faults import checksums
from qalign_jax.generate import read_prompts
from qalign_jax.models.adapter import Adapter
from qalign_jax.models.config import Execution, LlamaConfig
from qalign_jax.models.params import random_params
from qalign_jax.models.trainable import Trainable, new_adapter
from qalign_jax.parallel.mesh import make_mesh
from qalign_jax.recipe import file as recipe_file
from qalign_jax.recipe.stages.base import read_stages
from qalign_jax.recipe.workdir import Workdir
from qalign_jax.reporting import compare, explorer, model_card, page, stages, trained
from qalign_jax.training.metrics import MetricWriter
from tests.files import QUESTIONS, write_jsonl
from tests.hostile.data_sets import DATA_SETS


@dataclasses.dataclass(frozen=True)
class Reader:
    """`count` mutations run in CI; `only` are the names of the files that are mutated."""

    make: Callable
    read: Callable
    count: int
    only: tuple[str, ...] = ()


CONFIG = LlamaConfig(
    vocab_size=310, d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=24, head_size=8,
    max_length=64,
)  # fmt: skip
EXECUTION = Execution(dtype="float32", remat="none", attention="plain", scan_layers=False)
TEXTS = QUESTIONS["en"] * 3


# --- models -------------------------------------------------------------------------------------


def make_tokenizer(folder):
    train_sentencepiece(TEXTS, CONFIG.vocab_size, folder / "tokenizer.model")
    return load_tokenizer(folder / "tokenizer.model")


def make_hugging_face(folder, shard_bytes=10**9):
    tokenizer = make_tokenizer(folder)
    config = hf_config.config_json(CONFIG, "float32", tokenizer, "short")
    files.write_json(folder / "config.json", config)
    files.write_json(folder / "generation_config.json", {"eos_token_id": tokenizer.eos_id})
    shapes = hf_weights.tensor_shapes(CONFIG)
    random = np.random.default_rng(0)
    tensors = ((name, random.normal(size=shape).astype("f4")) for name, shape in shapes.items())
    write_files(folder, tensors, shapes, np.dtype("f4"), shard_bytes)


def make_sharded(folder):
    make_hugging_face(folder, 4000)


def read_hugging_face(folder):
    card = read_card(folder)
    assert math.isfinite(card.config.rope_theta)
    tensors = TensorFiles(folder)
    hf_weights.check(tensors, card.config)
    for name, entry in tensors.entries.items():
        assert tensors.read(name).shape == entry.shape
    fingerprint(folder)


def read_tokenizer(folder):
    tokenizer = load_tokenizer(tokenizer_directory(folder))
    assert 0 <= tokenizer.bos_id < 10**7 and 0 <= tokenizer.eos_id < 10**7
    for text in PROBES:
        tokenizer.decode(tokenizer.encode(text))
    tokenizer.piece(0)
    tokenizer.save(folder / "saved")


def make_tokenizer_json(folder):
    make_hugging_face(folder)
    for name, content in load_tokenizer(folder).hugging_face_files().items():
        (folder / name).write_bytes(content)
    (folder / "tokenizer.model").unlink()
    (folder / "model.safetensors").unlink()


def make_adapter(folder):
    make_hugging_face(folder / "base")
    config = {"peft_type": "LORA", "lora_alpha": 8, "r": 2, "alpha_pattern": {"o_proj": 4.0}}
    files.write_json(folder / "adapter_config.json", config)
    base, shapes = TensorFiles(folder / "base"), {}
    for name in ("q_proj", "o_proj"):
        target = f"model.layers.0.self_attn.{name}"
        out, into = base.entries[f"{target}.weight"].shape
        shapes[f"base_model.model.{target}.lora_A.weight"] = (2, into)
        shapes[f"base_model.model.{target}.lora_B.weight"] = (out, 2)
    tensors = ((name, np.ones(shape, "f4")) for name, shape in shapes.items())
    write_files(folder, tensors, shapes, np.dtype("f4"), 10**9)
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")


def read_adapter(folder):
    merged = MergedTensors(TensorFiles(folder / "base"), folder)
    for name in merged.entries:
        merged.read(name)
    merged.adapter_fingerprint()


def make_adapter_alone(folder):
    adapter = Adapter(2, matrices=("query", "down"))
    lora.write(folder, adapter, new_adapter(CONFIG, adapter, make_mesh("single"), 0), "base")


def read_adapter_alone(folder):
    """As it is read to stand beside its base."""
    pairs = lora.read_pairs(folder, CONFIG, lora.read_adapter(folder), make_mesh("single"))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(pairs))
    lora.fingerprint(folder)


def make_stage(folder):
    tokenizer = make_tokenizer(folder)
    params = random_params(CONFIG, make_mesh("single"), 0)
    save_model(folder, Model(CONFIG, EXECUTION, params, tokenizer, "short"))
    (folder / "tokenizer.model").unlink()
    write_record(
        folder, Record({"init": "random", "data": {"a": {"name": "jsonl"}}}, {"data": "x"})
    )


def read_stage(folder):
    card = read_card(folder)
    assert math.isfinite(card.config.rope_theta) and 0 < card.config.norm_eps <= 1
    read_record(folder)
    fingerprint(folder)
    read_tokenizer(folder)


def load_stage(folder):
    """The weights are right, or the error is ours."""
    expected = random_params(CONFIG, make_mesh("single"), 0)
    found = load_model(folder).params
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    same = jax.tree.map(np.array_equal, found, expected)
    assert all(jax.tree.leaves(same)), "other weights"


# --- prompts, answers, predictions --------------------------------------------------------------


def make_prompts(folder):
    write_jsonl(folder / "prompts.jsonl", [{"prompt": "a"}, {"question": "b?", "id": 7}])


def read_prompts_of(folder):
    for row in read_prompts(folder / "prompts.jsonl"):
        json.dumps(row, ensure_ascii=False).encode()


def trace(count):
    columns = {name: ["a"] * count for name in ("text", "base_text")}
    columns |= {name: [3] * count for name in ("tokens", "base_tokens")}
    return columns | {name: [0.5] * count for name in ("base_probability", "probability", "moved")}


PARTIAL = {"checkpoint": "c", "seed": 0}


def make_partial(folder):
    rows = [{"id": str(n), "tokens": [3, 4, 5], "trace": trace(3)} for n in range(3)]
    write_jsonl(folder / "out.jsonl.partial.jsonl", [{"header": PARTIAL}, *rows])


def read_partial(folder):
    """As generate reads it: tests/test_generate.py damages the file of a whole command."""
    from qalign_jax.generate import shapes_of_answers

    answers = AnswerFile(folder / "out.jsonl.partial.jsonl", PARTIAL)
    answers.read(shapes_of_answers(300, True))
    for answer in answers.answers.values():
        assert all(0 <= token < 300 for token in answer["tokens"])
        assert len(answer["trace"]["text"]) == len(answer["trace"]["moved"])
    answers.open()
    answers.close()


def make_predictions(folder):
    rows = [
        {"id": str(n), "output": f"The answer is {n}.", "answer": str(n), "language": "de"}
        for n in range(3)
    ]
    write_jsonl(folder / "numbers.jsonl", rows)
    rows = [{"output": "B", "answer": "A", "choices": ["A", "B"], "language": "it"}] * 2
    write_jsonl(folder / "choices.jsonl", rows)


def read_predictions(folder):
    for name, file in (("mgsm", "numbers.jsonl"), ("xcopa", "choices.jsonl")):
        result = predictions.score(name, folder / file)
        assert all(0 <= value <= 100 for value in result["accuracy"].values())


# --- a run --------------------------------------------------------------------------------------

PROBLEMS = [
    {"id": str(n), "language": language, "question": f"{n} + 1?", "answer": str(n + 1)}
    for language in ("de", "en")
    for n in range(3)
]
CHOICES = [
    {"id": "0", "language": "it", "question": "a?", "answer": "A", "choices": ["A", "B"]},
]


class Generator:
    """Answers with the right numbers, and finds the first choice likelier."""

    def __call__(self, prompts, max_new_tokens, *, turns=None):
        for number, _ in enumerate(prompts):
            yield Answer(number, "= 1. The answer is 1.", [3, 4])

    def log_likelihoods(self, prompts, choices):
        for number, row in enumerate(choices):
            yield number, [-1.0 - place for place in range(len(row))]


def evaluate(folder, problems, name):
    benchmark = benchmarks.get(name)
    return runner.evaluate(
        "qalign", benchmark, problems, Generator(), "short", folder, {"models": ["a"]}
    )


def make_answers(folder):
    evaluate(folder, PROBLEMS, "mgsm")
    evaluate(folder, CHOICES, "xcopa")


def read_answers(folder):
    """The evaluation goes on from what is there, then its solutions are compared."""
    for problems, name in ((PROBLEMS, "mgsm"), (CHOICES, "xcopa")):
        found = evaluate(folder, problems, name).result
        assert all(0 <= found[key] <= 100 for key in ("average", "non_english"))
    reasoning.compare(reasoning.read_answers(folder / "qalign" / "mgsm"))


def _result(languages, p=0.5):
    intervals = {language: [10.0, 90.0] for language in languages}
    table = dict.fromkeys(languages, 50.0)
    versus = {"difference": 1.0, "p": p, "interval": [-1.0, 2.0]}
    return {
        **table,
        "intervals": intervals,
        "sound": table,
        "consistency": {"prediction": table, "language": table},
        "executions": {"ok": 90.0},
        "versus": {
            "baseline": "base",
            "de": {"difference": 1.0, "p": p, "p_holm": p},
            "non_english": versus,
            "average": versus,
        },
    }


LANGUAGES = ("de", "en", "average", "non_english")
FIGURES = dict.fromkeys(("translations", "others", "nearer", "to_english", "from_english"), 0.5)
LAYER = {
    "centred": {"de": FIGURES, "average": FIGURES},
    "raw": {"de": FIGURES, "average": FIGURES},
    "between_languages": 0.5,
}


def make_run(folder):
    """A run's folder with all that a page shows; `convert`'s card is made of it too."""
    systems = {
        "base": {"model": "pretraining", "expert": "", "antiexpert": "", "alpha": 1.0},
        "qalign": {"model": "tuning", "expert": "", "antiexpert": "", "alpha": 1.0},
    }
    files.write_json(
        folder / "config.json",
        {
            "name": "demo", "stages": ["pretraining", "tuning", "evaluation", "analysis"],
            "seed": 0, "notes": ["smaller"],
            "pretraining": {"kind": "train", "init": "random", "preset": "tiny"},
            "tuning": {"kind": "train", "init": "pretraining"},
            "evaluation": {"kind": "evaluate", "systems": systems, "baseline": "base"},
            "analysis": {"kind": "representations", "systems": {"base": "pretraining"}},
        },
    )  # fmt: skip
    for name, init in (("pretraining", "random"), ("tuning", "pretraining")):
        stage = folder / name
        rows = [
            {"step": n, "loss": 2.0, "learning_rate": 1e-3, "tokens_per_second": None}
            for n in (1, 2)
        ]
        write_jsonl(stage / "metrics.jsonl", rows)
        files.write_json(stage / "packing.json", {"examples": 9, "positions": 5})
        done = {"matters": {"lr": 1.0}, "after": {}, "steps": 2, "rows": 2, "seconds": 1.5}
        files.write_json(stage / "done.json", done)
        settings = {"init": init, "data": {"a": {"name": "jsonl", "part": "x"}}, "lr": 1e-3}
        write_record(stage, Record(settings, {"data": "0", "init": "random tiny 0"}))
    base = _result(LANGUAGES)
    del base["versus"]
    scores = {"base": {"mgsm": base}, "qalign": {"mgsm": _result(LANGUAGES)}}
    files.write_json(folder / "evaluation" / "results.json", {"systems": scores})
    row = {
        "id": "0",
        "language": "de",
        "question": "a?",
        "answer": "1",
        "output": "ab",
        "tokens": 2,
    }
    row |= {"correct": False, "prediction": 2.0, "sound_correct": True, "sound_prediction": 1.0}
    row |= {"trace": trace(2), "executions": [{"status": "ok", "output": "1"}]}
    answers = folder / "evaluation" / "qalign" / "mgsm" / "de.jsonl"
    write_jsonl(answers, [{"header": {"template": "short", "settings": {}}}, row])
    points = {"de": [[0.1, 0.2], [0.3, 0.4]], "en": [[0.5, 0.6]]}
    pca = {"layer": 1, "explained": [0.5, 0.2], "points": points}
    files.write_json(
        folder / "analysis" / "results.json",
        {
            "representations": {
                "questions": 2, "retrieval_by_chance": 50.0,
                "systems": {"base": {"layers": {"0": LAYER, "1": LAYER}, "pca": pca}},
            },
            "reasoning": {"mgsm": {"base": {"de": {"all": 50.0, "by_chance": None}}}},
            "data_scale": {
                "mgsm": [
                    {"system": name, "pairs": pairs, "average": 1.0, "non_english": 1.0}
                    for name, pairs in (("base", 0), ("qalign", 100))
                ]
            },
        },
    )  # fmt: skip


RUN = ("config.json", "done.json", "results.json", "metrics.jsonl", "packing.json", "de.jsonl")


def read_run(folder):
    """What a page is made of, without its charts."""
    _, found = stages.read(folder)
    evaluated = [stage.name for stage in found if stage.systems]
    explorer.section(folder, evaluated)
    for stage in found:
        assert all(math.isfinite(row["loss"]) for row in stage.metrics)


def read_page(folder):
    page.write(folder)


def make_runs(folder):
    make_run(folder / "one")
    make_run(folder / "two")


def read_comparison(folder):
    compare.write([folder / "one", folder / "two"], folder / "comparison.html")


def read_card_of_run(folder):
    model_card.text(folder / "tuning", 2, CONFIG, "name", "float32", "short")


def read_records(folder):
    """What `run` reads of a workdir before and after its stages."""
    workdir = Workdir(folder)
    for name in ("pretraining", "tuning", "evaluation", "analysis"):
        workdir.is_done(name, {"lr": 1.0})
        read_record(folder / name)
    workdir.results(["pretraining", "evaluation", "analysis"])
    results = read_results(folder / "evaluation" / "results.json", "name another")["systems"]
    try:
        curves = data_scale.curves(results, {"base": 0, "qalign": 9})
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None  # the stage puts its name in front
    assert all(0 <= point["average"] <= 100 for each in curves.values() for point in each)
    writer = MetricWriter(folder / "tuning", 1)
    writer.close()


def make_sums(folder):
    for name in ("a", "b/c"):
        files.write_text(folder / name, name)
    checksums.write_sums(folder)


def read_sums(folder):
    """A file that differs must not pass: what it held is known here."""
    if checksums.check_sums(folder):
        held = {path.name: path.read_text() for path in (folder / "a", folder / "b" / "c")}
        listed = (folder / checksums.SUMS).read_text()
        assert all(held[name[-1:]] == name for name in ("a", "b/c") if f"  {name}\n" in listed)


# --- recipes ------------------------------------------------------------------------------------

OVERRIDES = {
    "seed": 1, "template": "short", "mesh": "data:1", "tokenizer": "vocabulary", "name": "x",
    "question_alignment.lr": 1e-3, "question_alignment.steps": 3, "question_alignment.dtype": "",
    "question_alignment.batch_size": 4, "evaluation.slots": 3, "evaluation.dtype": "float32",
    "evaluation.baseline": "ralign", "evaluation.systems.base.alpha": 1.0,
    "evaluation.systems.base.model": "pretraining",
}  # fmt: skip


def make_overrides(folder):
    files.write_json(folder / "overrides.json", OVERRIDES)


def read_overrides(folder):
    """A recipe with values and keys from anywhere; a recipe's file itself is the user's code."""
    overrides = files.read_object(folder / "overrides.json", "mend it")
    try:
        read_stages(recipe_file.read("configs/demo.py", overrides))
    except ValueError as error:  # an override has no file: the command line is its place
        raise ValueError(f"overrides.json: {error}") from None


def make_described(folder, part=None):
    describe_model(folder, Card(CONFIG, EXECUTION, "short", part), make_tokenizer(folder))
    (folder / "checkpoints" / "0").mkdir(parents=True)
    (folder / "checkpoints" / "0" / "params").write_text("")
    write_record(folder, Record({}, {"source": "x"}))
    (folder / "tokenizer.model").unlink()


def make_stage_of_adapter(folder):
    adapter = Adapter(2, dropout=0.1, matrices=("query", "down"))
    make_described(folder, Part(Trainable(adapter, int8=True), "../base", "0123456789abcdef"))


def read_stage_of_adapter(folder):
    read_stage(folder)
    found = trained.read(folder)
    assert found and found.what and 0 < found.parameters and math.isfinite(found.share)


READERS = {
    "hugging face": Reader(make_hugging_face, read_hugging_face, 400),
    "hugging face in shards": Reader(
        make_sharded, read_hugging_face, 200,
        ("model.safetensors.index.json", "model-00001-of-00002.safetensors"),
    ),
    "sentencepiece": Reader(make_hugging_face, read_tokenizer, 250, ("tokenizer.model",)),
    "tokenizer.json": Reader(
        make_tokenizer_json, read_tokenizer, 250, ("tokenizer.json", "tokenizer_config.json")
    ),
    "lora": Reader(
        make_adapter, read_adapter, 200, ("adapter_config.json", "adapter_model.safetensors")
    ),
    "lora alone": Reader(make_adapter_alone, read_adapter_alone, 150),
    "stage": Reader(make_described, read_stage, 250, ("model.json", "stage.json")),
    "stage of an adapter": Reader(
        make_stage_of_adapter, read_stage_of_adapter, 150, ("model.json",)
    ),
    "checkpoint": Reader(make_stage, load_stage, 25),
    **{name: Reader(*both, 100) for name, both in DATA_SETS.items()},
    "prompts": Reader(make_prompts, read_prompts_of, 60),
    "partial": Reader(make_partial, read_partial, 200),
    "predictions": Reader(make_predictions, read_predictions, 100),
    "answers": Reader(make_answers, read_answers, 60),
    "run": Reader(make_run, read_run, 300, RUN),
    "page": Reader(make_run, read_page, 20, RUN),
    "comparison": Reader(make_runs, read_comparison, 15, RUN),
    "model card": Reader(make_run, read_card_of_run, 150),
    "records": Reader(make_run, read_records, 250),
    "checksums": Reader(make_sums, read_sums, 150),
    "overrides": Reader(make_overrides, read_overrides, 40),
}  # fmt: skip
