"""Stages from their configs, the sources of their weights, and a new kind in one file."""

import dataclasses
import json
import math
import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from qalign_jax.ahead.jobs import DecodingJob, TrainingJob, Workload, check_jobs
from qalign_jax.checkpoints.card import Card
from qalign_jax.checkpoints.model import Model, save_model
from qalign_jax.checkpoints.record import Record, write_record
from qalign_jax.configs import demo
from qalign_jax.data.tokenizer import load_tokenizer, train_sentencepiece
from qalign_jax.decoding.system import System, TextGenerator
from qalign_jax.models.config import Execution
from qalign_jax.models.params import hold, init_params
from qalign_jax.models.presets import preset
from qalign_jax.parallel.mesh import make_mesh
from qalign_jax.recipe import parts
from qalign_jax.recipe.recipe import Recipe
from qalign_jax.recipe.stages.base import Stage, make_run, read_stages
from qalign_jax.recipe.weights import Source
from qalign_jax.reporting import page as report


@pytest.fixture
def config():
    config = parts.recipe("two", ("tuned", "scored"), mesh="fsdp:4,tensor:2")
    config.tuned = parts.training("random", {}, preset="tiny")
    config.scored = parts.evaluation(
        systems={"tuned": parts.system("tuned")}, benchmarks={"mgsm": parts.benchmark()}
    )
    return config


def read(config, workdir=""):
    stages = read_stages(config)
    return stages, make_run(config, stages, workdir)


def test_an_evaluation_has_a_mesh_of_its_own_or_that_of_the_recipe(config):
    assert {stage.mesh for stage in read_stages(config).values()} == {"fsdp:4,tensor:2"}
    config.scored.mesh = "tensor:8"
    stages = read_stages(config)
    assert (stages["tuned"].mesh, stages["scored"].mesh) == ("fsdp:4,tensor:2", "tensor:8")


def test_each_model_of_a_system_has_its_preset(config):
    config.scored.systems.steered = parts.system(
        "random", expert="random", antiexpert="random", preset="llama2_70b", small_preset="tiny"
    )
    scored = read_stages(config)["scored"]
    assert scored.sources() == [
        Source("random", "llama2_70b"), Source("random", "tiny"), Source("random", "tiny"),
        Source("tuned"),
    ]  # fmt: skip


def test_the_architecture_of_a_stage_is_that_of_its_first_weights(config):
    _, run = read(config)
    assert run.weights.resolve(Source("tuned")).card() == Card(*preset("tiny"), "paper")
    with pytest.raises(ValueError, match="no weights can come from scored"):
        run.weights.resolve(Source("scored"))
    config.tuned.init = "tuned"
    with pytest.raises(ValueError, match="tuned needs tuned, which does not come before it"):
        read_stages(config)


def test_a_stage_computes_in_its_own_dtype_and_no_longer_than_the_model_reads(config):
    config.tuned.update({"dtype": "bfloat16", "remat": "qkvo"})
    stages, run = read(config)
    job = stages["tuned"].jobs(run, Workload())[""]
    assert isinstance(job, TrainingJob)
    assert job.model.execution == Execution(dtype="bfloat16", remat="qkvo")
    assert job.expected_rows == 128 / 2.4
    config.tuned.length = 4096
    stages, run = read(config)
    with pytest.raises(ValueError, match="tuned: length=4096 is more than the model's 2048"):
        check_jobs("tuned", stages["tuned"].jobs(run, Workload()), jax.devices())


def test_a_system_is_compiled_with_the_stages_dtype_and_room_for_the_longest_answer(config):
    config.scored.benchmarks.msvamp = parts.benchmark()
    stages, run = read(config)
    job = stages["scored"].jobs(run, Workload(prompt_tokens=100))["tuned"]
    assert isinstance(job, DecodingJob)
    assert (job.models[0].execution.dtype, job.prompt, job.new) == ("bfloat16", 100, 600)
    before = stages["scored"].settings()
    assert (job.weights_dtype, job.cache_dtype) == ("", "") and "cache_dtype" not in before
    config.scored.weights_dtype = "int8"
    stages, run = read(config)
    job = stages["scored"].jobs(run, Workload())["tuned"]
    assert (job.weights_dtype, job.cache_dtype) == ("int8", "")
    assert stages["scored"].settings() == before | {"weights_dtype": "int8"}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("kind", "evaluat", "kind='evaluat'; it is one of data_scale, evaluate, reasoning, rep"),
        ("kind", "no_package.stage", "kind='no_package.stage'; it is one of"),
        ("kind", "tests.files", "kind='tests.files'; it is one of"),
        ("kind", "base", "kind='base'; it is one of"),
        ("kind", "..", "kind='..'; it is one of"),
        ("dtype", "float64", "dtype='float64'; it is one of float32, bfloat16"),
        ("remat", "foo", "remat='foo'; it is one of full, qkvo, qkvo_mlp, none"),
        ("length", 0, "length=0; expected at least 2"),
        ("batch_size", 0, "batch_size=0; expected at least 1"),
        ("micro_batches", -1, "micro_batches=-1; expected at least 1"),
        ("rows", -1, "rows=-1; expected at least 0"),
        ("keep", 0, "keep=0; expected at least 1"),
        ("save_every", 0, "save_every=0; expected at least 1"),
        ("steps", -1, "steps=-1; expected at least 0"),
        ("epochs", 0.0, "epochs=0.0; expected above 0"),
        ("lr", float("nan"), "lr=nan; expected a number"),
        ("clip", -1.0, "clip=-1.0; expected at least 0"),
        ("warmup", 2.0, "warmup=2.0; expected from 0 to 1"),
        ("b2", 1.5, "b2=1.5; expected from 0 to 0.99"),
    ],
)
def test_training_that_makes_no_sense_is_refused(key, value, message, config):
    read_stages(config)
    config.tuned[key] = value
    with pytest.raises(ValueError, match=f"tuned.{message}"):
        read_stages(config)


def test_a_key_that_a_stage_does_not_have_or_lacks_is_named(config):
    with config.tuned.unlocked():
        config.tuned.epoch = 3.0
    with pytest.raises(ValueError, match=r"tuned\.epoch: a stage of kind 'train' has no such key"):
        read_stages(config)
    del config.tuned["epoch"], config.tuned["init"]
    with pytest.raises(ValueError, match=r"tuned\.init: a stage of kind 'train' needs this key"):
        read_stages(config)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (("tuned", "tuned"), "names 'tuned' twice"),
        (("tuned", ""), "a stage cannot be named ''"),
        (("/abs",), "a stage cannot be named '/abs'"),
        (("random",), "a stage cannot be named 'random'"),
        (("tuned", "nothing"), "no stage 'nothing' is described in the recipe, only scored, tuned"),
        (("tuned", "mesh"), "no stage 'mesh' is described"),
    ],
)
def test_names_that_can_be_no_stages_are_refused(stages, message, config):
    config.stages = stages
    with pytest.raises(ValueError, match=message):
        read_stages(config)


def test_a_part_without_a_value_that_it_needs_is_named():
    with pytest.raises(ValueError, match="Shout needs a value of 'text'"):
        parts.stage("tests.recipe.test_stages")


def swept(alpha):
    return {"systems": {"steered": parts.system("tuned", "tuned", "tuned", alpha=alpha)}}


def drafting(**changes):
    return {"systems": {"drafted": {"model": "tuned", **changes}}}


def test_several_alphas_are_compiled_once(config):
    config.scored.update(swept((0.5, -1, 1e-7)))
    stages, run = read(config)
    assert list(stages["scored"].jobs(run, Workload())) == ["steered", "tuned"]
    names = ["steered_alpha0.5", "steered_alpha-1.0", "steered_alpha1e-07", "tuned"]
    assert list(stages["scored"]._scored) == names


def test_evaluation_that_makes_no_sense_is_refused(config):
    for change, message in [
        ({"slots": -1}, "scored.slots=-1; expected at least 0"),
        ({"dtype": "int8"}, "scored.dtype='int8'"),
        ({"weights_dtype": "int4"}, "scored.weights_dtype='int4': expected int8, or nothing"),
        ({"cache_dtype": "f32"}, "scored.cache_dtype='f32': expected int8, or nothing"),
        ({"benchmarks": {"mgsm": {"max_new_tokens": -1}}}, "scored.benchmarks.mgsm.max_new_tokens"),
        ({"systems": {"tuned": {"expert": "tuned"}}}, "give both expert and antiexpert"),
        ({"systems": {"tuned": {"beta": 1.0}}}, "scored.systems.tuned.beta: no system has such a"),
        ({"systems": {"tuned": {"alpha": float("nan")}}}, "tuned.alpha=nan; expected a number"),
        ({"systems": {"a/b": parts.system("tuned")}}, "a system cannot be named 'a/b'"),
        (swept(()), r"steered.alpha=\(\); expected one value or more"),
        (swept((0.5, math.nan)), r"expected a number or a list of which each is a number"),
        (swept("0.5,1"), r"alpha='0.5,1'; expected a number or a list, like \(0.5, 1.0\)"),
        (swept((1, 0.5, 1.0)), "two systems are named 'steered_alpha1.0'; give each alpha once"),
        (swept((0.5,)) | {"baseline": "steered"}, "one of the systems, steered_alpha0.5, tuned"),
        (swept((0.5, 2000.0)), "steered.alpha=2000.0: expected a number from -1000 to 1000"),
        (
            drafting(draft_tokens="20"),
            "drafted.draft_tokens=20: expected auto, or a whole",
        ),
        (drafting(draft_tokens="3"), "drafted.draft_tokens=3 without a draft: name a model, or"),
        (drafting(draft_tokens=3), "drafted.draft_tokens=3; expected a text"),
        (
            {"systems": {"alone": parts.system("tuned", alpha=(1.0, 2.0))}},
            "scored.systems.alone.alpha: several values need an expert and an antiexpert",
        ),
    ]:
        changed = config.copy_and_resolve_references()
        with changed.unlocked():
            changed.scored.update(change)
        with pytest.raises(ValueError, match=message):
            read_stages(changed)
    for key in ("systems", "benchmarks"):
        changed = config.copy_and_resolve_references()
        changed.scored[key] = ConfigDict()
        with pytest.raises(ValueError, match=f"scored.{key}: no {key} to evaluate"):
            read_stages(changed)


def test_rows_and_lengths_are_multiples_of_what_the_mesh_makes_of_them(config):
    def check():
        stages, run = read(config)
        check_jobs("tuned", stages["tuned"].jobs(run, Workload()), jax.devices())

    config.tuned.update({"rows": 8, "micro_batches": 2})
    check()
    config.tuned.rows = 12
    with pytest.raises(ValueError, match="tuned: rows=12 must be a multiple of 8"):
        check()
    config.tuned.update({"rows": 8, "length": 511})
    with pytest.raises(ValueError, match="tuned: length=511 must be a multiple of tensor:2"):
        check()


def test_settings_leave_out_what_only_says_how_it_is_computed(config):
    config.tuned.data = ConfigDict({"own": parts.source("jsonl", "/here")})
    before = {name: stage.settings() for name, stage in read_stages(config).items()}
    config.mesh = "fsdp:8"
    config.tuned.update({"remat": "full", "micro_batches": 4, "save_every": 1, "keep": 3})
    config.tuned.data.own.path = "/there"
    config.scored.update({"slots": 1, "mesh": "tensor:8"})
    drafts = {"draft": "tuned", "draft_tokens": "3", "draft_preset": "tiny"}
    for system in config.scored.systems.values():
        system.update(drafts)
    assert {name: stage.settings() for name, stage in read_stages(config).items()} == before
    for key, value in {"seed": 1, "template": "short"}.items():
        changed = config.copy_and_resolve_references()
        changed[key] = value
        assert read_stages(changed)["tuned"].settings() != before["tuned"]


# What the first release wrote as the settings of the demo's response_alignment. A run of it resumes
# where they are equal; in their order too, because weights are fingerprinted by stage.json's bytes.
FIRST_SETTINGS = """
{"b1": 0.9, "b2": 0.98, "batch_size": 128, "clip": 1.0, "data": {"answers": {"count": 4000,
"languages": [], "name": "word_problems", "part": "responses", "seed": 0, "slice": "",
"split": "", "weight": 1.0}}, "dtype": "", "epochs": 3.0, "eps": 1e-08, "init":
"question_alignment", "kind": "train", "length": 144, "lr": 0.001, "pack": true, "preset":
"", "rows": 2, "steps": 500, "template": "short", "warmup": 0.03, "weight_decay": 0.0,
"seed": 0}
"""


def test_the_settings_of_a_run_of_the_first_release_are_those_of_today():
    found = read_stages(demo.get_config())["response_alignment"].settings()
    assert list(json.loads(FIRST_SETTINGS).items()) == list(found.items())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shout(Stage):
    """A kind of stage in one file: writes its text in capitals."""

    text: str
    times: int = 1

    def run(self, run):
        run.workdir.write_json(f"{self.name}/shouted.json", [self.text.upper()] * self.times)
        return {"times": self.times}


STAGE = Shout


def test_a_kind_of_stage_is_added_in_one_file(tmp_path):
    config = parts.recipe("loud", ("loud",))
    config.loud = parts.stage("tests.recipe.test_stages", text="translate")
    outcome = Recipe(config, tmp_path).run()
    assert outcome["stages"] == {"loud": "done"}
    assert json.loads((tmp_path / "loud" / "shouted.json").read_text()) == ["TRANSLATE"]
    config.loud.times = 2
    assert Recipe(config, tmp_path).run()["stages"] == {"loud": "done"}  # rerun: settings changed
    assert len(json.loads((tmp_path / "loud" / "shouted.json").read_text())) == 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Whisper(Shout):
    quietly: bool = True


def test_a_kind_that_is_derived_from_another_has_its_keys_too():
    assert Whisper.keys() == ["text", "times", "quietly"]
    with pytest.raises(TypeError, match="abstract"):
        Stage(kind="", name="", seed=0, template="", mesh="", tokenizer="")


@pytest.fixture
def directories(tmp_path, tokenizer, texts):
    """Two directories of one model: with its own tokenizer and with another."""
    train_sentencepiece([text.upper() for text in texts], 420, tmp_path / "other.model")
    config, execution = preset("tiny", vocab_size=420)
    params = init_params(config, jax.random.key(0))
    other = load_tokenizer(tmp_path / "other.model")
    for name, its in (("own", tokenizer), ("odd", other)):
        save_model(tmp_path / name, Model(config, execution, params, its, "short"))
        write_record(tmp_path / name, Record({}, {"source": name}))
    return tmp_path / "own", tmp_path / "odd"


def evaluation(large, expert, antiexpert, **changes):
    config = parts.recipe("steered", ("scored",), **changes)
    config.scored = parts.evaluation(
        systems={"steered": parts.system(str(large), str(expert), str(antiexpert))},
        benchmarks={"word_problems": parts.benchmark(part="test", count=2)},
    )
    return config


@pytest.mark.slow
def test_an_evaluation_decodes_in_int8_and_its_files_say_so(directories, tmp_path, tokenizer):
    own, _ = directories
    config = evaluation(own, own, own, cache_dir=str(tmp_path / "cache"))
    config.scored.systems = {"one": parts.system(str(own))}
    config.scored.update({"dtype": "float32", "weights_dtype": "int8", "cache_dtype": "int8"})
    config.scored.benchmarks.word_problems.update({"languages": ("en",), "max_new_tokens": 8})
    Recipe(config, tmp_path / "run").run()
    file = tmp_path / "run" / "scored" / "one" / "word_problems" / "en.jsonl"
    header, *rows = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    settings = header["header"]["settings"]
    assert settings["weights_dtype"] == settings["cache_dtype"] == "int8"
    asked = dict(dtype="float32", weights_dtype="int8", cache_dtype="int8")
    generator = TextGenerator(System.load([own], **asked))
    answers = sorted(generator([row["prompt"] for row in rows], 8))
    assert [row["output"] for row in rows] == [answer.text for answer in answers]


@pytest.mark.slow
def test_an_evaluation_counts_drafts_by_language_and_answers_as_without(directories, tmp_path):
    own, _ = directories
    config = evaluation(own, own, own, cache_dir=str(tmp_path / "cache"))
    systems = {
        "plain": parts.system(str(own)),
        "drafted": parts.system(str(own), draft=str(own), draft_tokens="3"),
        "steered": parts.system(str(own), str(own), str(own), draft="lookup"),
    }
    config.scored.systems = systems
    config.scored.dtype = "float32"
    languages = ("en", "de")
    config.scored.benchmarks.word_problems.update({"languages": languages, "max_new_tokens": 8})
    results = Recipe(config, tmp_path / "run").run()["systems"]
    plain, drafted, steered = (results[name]["word_problems"] for name in systems)
    assert "acceptance" not in plain and set(steered["tokens_per_round"]) == {"all", *languages}
    # the model drafts for itself
    assert drafted["acceptance"] == dict.fromkeys((*languages, "all"), 100.0)
    for language in languages:
        lines = {
            name: (tmp_path / f"run/scored/{name}/word_problems/{language}.jsonl").read_text()
            for name in systems
        }
        rows = {
            name: [json.loads(line) for line in text.splitlines()] for name, text in lines.items()
        }
        assert rows["plain"][0]["header"]["settings"] == rows["drafted"][0]["header"]["settings"]
        outputs = {name: [row["output"] for row in found[1:]] for name, found in rows.items()}
        assert outputs["plain"] == outputs["drafted"] == outputs["steered"]
        counts = [row["drafted"] for row in rows["drafted"][1:]]
        tokens, rounds = (sum(count[key] for count in counts) for key in ("tokens", "rounds"))
        assert drafted["tokens_per_round"][language] == round(tokens / rounds, 3) > 2
    page = report.write(tmp_path / "run").read_text()
    assert "per cent of the compared drafts that were kept" in page and "<td>100.00</td>" in page


def test_a_draft_with_another_tokenizer_is_refused_before_any_work(directories, tmp_path):
    own, odd = directories
    config = evaluation(own, own, own, cache_dir=str(tmp_path / "cache"))
    config.scored.systems.steered.draft = str(odd)
    with pytest.raises(ValueError, match=r"the tokenizers of .*own and .*odd differ: the piece"):
        Recipe(config, tmp_path / "run").prepare()
    config.scored.systems.steered.draft_tokens = "0"  # then the draft is not read
    Recipe(config, tmp_path / "run").prepare()


def test_random_weights_become_int8_as_others_do(directories):
    config = evaluation("random", "random", "random", tokenizer=str(directories[0] / "tokenizer"))
    _, run = read(config)
    weights, mesh = run.weights.resolve(Source("random", "tiny")), make_mesh("fsdp:4,tensor:2")
    wide, int8 = weights.load(mesh, "bfloat16"), weights.load(mesh, "bfloat16", "int8")
    expected = hold(wide.config, wide.params, "bfloat16", apart=False, int8=True)
    jax.tree.map(np.testing.assert_array_equal, int8.params, expected)
    assert int8.params["layers"]["mlp"]["up"].values.dtype == "int8"


def test_a_system_of_models_whose_tokenizers_differ_is_refused_before_any_work(
    directories, tmp_path
):
    own, odd = directories
    config = evaluation(own, odd, own, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"the tokenizers of .*own and .*odd differ: the piece"):
        Recipe(config, tmp_path / "run").prepare()


def test_a_tokenizer_of_the_recipe_that_is_not_the_directorys_is_refused(
    directories, tmp_path, model_file
):
    own, odd = directories
    config = evaluation(own, own, own, tokenizer=str(model_file), cache_dir=str(tmp_path / "cache"))
    Recipe(config, tmp_path / "run").prepare()
    config.scored.systems.steered.antiexpert = str(odd)
    with pytest.raises(ValueError, match=rf"tokenizer={model_file} is not that of {odd}: the pie"):
        Recipe(config, tmp_path / "run").prepare()
    shutil.rmtree(odd / "tokenizer")  # without its own, the recipe's is used
    Recipe(config, tmp_path / "run").prepare()


def test_fingerprints_of_weights_change_with_their_record(directories):
    own, odd = directories
    config = evaluation(own, odd, own)
    _, run = read(config)
    found = [run.weights.resolve(Source(str(path))).fingerprint() for path in (own, odd, own)]
    assert found[0] == found[2] != found[1] and found[0].startswith(f"{own} ")
    assert run.weights.resolve(Source("random", "tiny")).fingerprint() == "random tiny 1234"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": "choice"}, "scored.benchmarks.word_problems: .*problem .*without choices"),
        ({"languages": ("de", "de")}, "names one twice"),
        ({"split": "dev"}, "word_problems has no splits"),
    ],
)
def test_what_cannot_be_judged_is_refused_before_anything_is_trained(
    config, tmp_path, model_file, changes, message
):
    config.tokenizer, config.cache_dir = str(model_file), str(tmp_path / "cache")
    questions = parts.benchmark(part="test", count=2, **changes)
    config.scored.benchmarks = {"word_problems": questions}
    stages, run = read(config, tmp_path / "run")
    with pytest.raises(ValueError, match=message):
        stages["scored"].prepare(run)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sandbox": "docker"}, "sandbox='docker'; it is bubblewrap or none"),
        ({"baseline": "nobody"}, "scored.baseline='nobody'; it is one of the systems, tuned"),
    ],
)
def test_an_evaluation_of_unknown_words_is_refused(config, changes, message):
    config.scored.update(changes)
    with pytest.raises(ValueError, match=message):
        read_stages(config)
    config.scored.update({"sandbox": "none", "baseline": "tuned"})
    config.scored.benchmarks.mgsm.protocol = "nonsense"
    with pytest.raises(ValueError, match="unknown protocol 'nonsense'; it is one of choice, code"):
        read_stages(config)


def test_without_bubblewrap_code_is_refused_before_the_problems_are_read(
    config, tmp_path, model_file, monkeypatch
):
    config.tokenizer = str(model_file)
    config.scored.benchmarks.mgsm.protocol = "code"
    monkeypatch.setenv("PATH", str(tmp_path))
    stages, run = read(config, tmp_path / "run")
    with pytest.raises(ValueError, match="bubblewrap"):
        stages["scored"].prepare(run)
