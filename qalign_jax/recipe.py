"""A recipe: named stages in order, where each one's weights come from, and what is finished.

A stage's folder in the workdir keeps `stage.json` (what shaped it: a run that differs there is
refused), its outputs, and at the end `done.json`. So any run can be started again by the same
command: what is finished is skipped, what is not goes on.
"""

import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Iterator, Sequence

import jax
from absl import logging
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from qalign_jax.data import packing, prompts
from qalign_jax.data.batches import Batches, rows_for
from qalign_jax.data.datasets import load_examples
from qalign_jax.data.tokenizer import Tokenizer, load_tokenizer, train_sentencepiece
from qalign_jax.decoding.engine import Engine, TextGenerator
from qalign_jax.decoding.proxy import FirstModel, ProxyTuning
from qalign_jax.evaluation import benchmarks, runner, scores
from qalign_jax.evaluation.numbers_only import numbers_only_accuracy
from qalign_jax.models import hf
from qalign_jax.models.presets import preset
from qalign_jax.models.tensor_files import TensorFiles
from qalign_jax.parallel import hosts
from qalign_jax.parallel.mesh import make_mesh
from qalign_jax.stages import (
    RANDOM,
    check_rows,
    check_stage,
    mesh_spec,
    model_shape,
    optimizer_config,
    system_sources,
    training_config,
)
from qalign_jax.training.checkpoints import (
    Checkpoints,
    Model,
    describe_model,
    load_model,
    stage_and_step,
)
from qalign_jax.training.loop import train
from qalign_jax.training.optimizer import Schedule
from qalign_jax.training.step import (
    abstract_state,
    init_state,
    make_train_step,
    random_params,
    rows_multiple,
)

# What may change between two starts of one run: how it is computed, not what. Data may move: the
# fingerprint of its content is compared instead.
FREE_KEYS = {"path", "micro_batches", "remat", "save_every", "keep", "slots", "mesh"}


class Recipe:
    """The stages of one config in one workdir.

    Raises:
      ValueError: a stage that is not described, weights that come from nowhere, or a workdir whose
        stages were made by another config.
    """

    def __init__(self, config: ConfigDict, workdir, only: Sequence[str] = ()):
        self.config = config
        self.workdir = epath.Path(workdir)
        self.names = tuple(config.stages)
        for name in (*self.names, *only):
            if name not in config or "kind" not in config[name] or name not in self.names:
                raise ValueError(f"no stage {name!r}; the recipe's stages are {_list(self.names)}")
        self.chosen = tuple(name for name in self.names if not only or name in only)
        self._check_order()
        for name in self.names:
            self._check_unchanged(name)

    def run(self) -> dict:
        """Runs the chosen stages in order; returns stage -> "done" or "open", and the results."""
        if jax.process_index() == 0:
            self.workdir.mkdir(parents=True, exist_ok=True)
            text = json.dumps(self.config.to_dict(), indent=1, ensure_ascii=False)
            (self.workdir / "config.json").write_text(text + "\n")
        run_stage = {
            "tokenizer": self._train_tokenizer, "train": self._train, "evaluate": self._evaluate
        }  # fmt: skip
        checked = False
        for name in self.chosen:
            # hosts meet before and after the question, so that all of them get one answer
            hosts.wait_for_all(f"{name} or not")
            done = self.is_done(name)
            kind = self.config[name].kind
            if not done and kind != "tokenizer" and not checked:
                self.check_fit()
                self.prepare()  # all input is read before the first device works
                checked = True
            hosts.wait_for_all(f"{name} begins")
            if done:
                logging.info("%s: finished before, skipped", name)
                continue
            logging.info("%s: begins", name)
            began = time.monotonic()
            summary = run_stage[kind](name)
            summary["seconds"] = round(time.monotonic() - began, 1)
            self._write(name, "done.json", {"matters": self._matters(name)} | summary)
            logging.info("%s: done in %.0f s", name, summary["seconds"])
        hosts.wait_for_all("all stages")
        return {
            "stages": {name: "done" if self.is_done(name) else "open" for name in self.names},
            "systems": self.results(),
        }

    def check_fit(self) -> None:
        """Raises a ValueError where devices, mesh, rows and model do not fit each other."""
        for name in self.chosen:
            stage = self.config[name]
            if stage.kind == "tokenizer" or self.is_done(name):
                continue
            mesh = self.mesh(name)
            if stage.kind == "train":
                check_rows(name, stage, mesh)
                training_config(name, model_shape(self.config, stage.init, stage.preset), stage)

    def prepare(self) -> dict[str, dict]:
        """Builds the data of every chosen stage that is not done; stage -> packing statistics."""
        stats = {}
        for name in self.chosen:
            kind = self.config[name].kind
            if kind == "tokenizer" or self.is_done(name):
                continue
            if kind == "train":
                stats[name] = dict(self.packed(name).stats)
            else:
                for _ in self._problems(name):
                    pass
        return stats

    def results(self) -> dict:
        """The systems of every evaluation stage, as in their results.json."""
        found = {}
        for name in self.names:
            file = self.workdir / name / "results.json"
            if file.exists():
                found |= json.loads(file.read_text())["systems"]
        return found

    def is_done(self, name: str) -> bool:
        """Whether the stage is finished; an evaluation is open again when its config changed."""
        file = self.workdir / name / "done.json"
        if not file.exists():
            return False
        return json.loads(file.read_text())["matters"] == self._matters(name)

    def packed(self, name: str) -> packing.PackedData:
        """The packed data of a training stage."""
        stage = self.config[name]
        try:
            return packing.build(
                stage.data.to_dict(), self.tokenizer(name), self._template(name), stage.length,
                self._cache_dir(), self.config.seed, stage.pack,
            )  # fmt: skip
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

    def tokenizer(self, name: str) -> Tokenizer:
        """The tokenizer of a training stage: the recipe's, else that of its initial weights."""
        return self.tokenizer_of(self.config[name].init)

    def tokenizer_of(self, weights: str) -> Tokenizer:
        source = self.config.tokenizer
        if source:
            return load_tokenizer(str(self._weights(source)))
        if weights in self.names:
            return self.tokenizer(weights)
        return _directory_tokenizer(weights)

    def mesh(self, name: str):
        """The mesh of a stage: its own, else the recipe's."""
        return make_mesh(mesh_spec(self.config, name))

    # -- stages ----------------------------------------------------------------------------------

    def _train_tokenizer(self, name: str) -> dict:
        stage = self.config[name]
        examples = [
            example
            for source in stage.data.values()
            for example in load_examples(source, self._cache_dir() / "datasets")
        ]
        prompt = functools.partial(prompts.render, self.config.template)
        texts = [(e["instruction"] and prompt(e["instruction"])) + e["response"] for e in examples]
        if jax.process_index() == 0:
            train_sentencepiece(
                texts, stage.vocab_size, str(self.workdir / name / "tokenizer.model"),
                user_defined_symbols=tuple(stage.symbols), seed=self.config.seed,
            )  # fmt: skip
        return {"texts": len(texts), "vocab_size": stage.vocab_size}

    def _train(self, name: str) -> dict:
        stage, folder = self.config[name], self.workdir / name
        mesh = self.mesh(name)
        packed, tokenizer = self.packed(name), self.tokenizer(name)
        multiple = rows_multiple(mesh, stage.micro_batches)
        rows = stage.rows or rows_for(stage.batch_size, packed, multiple)
        model = self._initial(name, tokenizer, mesh)
        config = model.config
        batches = Batches(packed, rows, self.config.seed)
        steps = stage.steps or batches.steps(stage.epochs)
        logging.info(
            "%s: %s parameters, %d steps of %d rows (%.1f examples)",
            name, f"{config.num_parameters:,}", steps, rows,
            rows * packed.stats["examples_per_row"],
        )  # fmt: skip
        self._write(name, "packing.json", dict(packed.stats))
        self._record(name, data=packed.fingerprint, tokenizer=tokenizer.fingerprint)
        if jax.process_index() == 0:
            describe_model(folder, config, tokenizer, self._template(name))

        optimizer = optimizer_config(stage)
        step = make_train_step(config, optimizer, mesh, stage.micro_batches)
        checkpoints = Checkpoints(folder, stage.save_every, stage.keep)
        latest = checkpoints.latest()
        try:
            if latest != steps:  # else it was stopped between the last save and done.json
                if latest is None:
                    state = init_state(config, optimizer, mesh, model.params)
                else:
                    logging.info("%s: goes on from step %d", name, latest)
                    wanted = abstract_state(config, optimizer, mesh)
                    state = checkpoints.restore(latest, wanted)
                train(
                    state, step, batches, Schedule(stage.lr, steps, stage.warmup),
                    config=config, mesh=mesh, checkpoints=checkpoints,
                    stage_dir=folder, name=name,
                )  # fmt: skip
        finally:
            checkpoints.close()
        return {"steps": steps, "rows": rows}

    def _initial(self, name: str, tokenizer: Tokenizer, mesh: Mesh) -> Model:
        """The weights that the stage starts from, in the stage's arithmetic."""
        stage = self.config[name]
        model = self._load(stage.init, stage.preset, tokenizer, mesh)
        config = training_config(name, model.config, stage)
        model = dataclasses.replace(model, config=config)
        if max(tokenizer.vocab_size, tokenizer.eos_id + 1) > config.vocab_size:
            raise ValueError(
                f"{name}: the tokenizer has {tokenizer.vocab_size} pieces, the model "
                f"{config.vocab_size}; they do not belong together"
            )
        return model

    def _evaluate(self, name: str) -> dict:
        stage, folder = self.config[name], self.workdir / name
        problems = dict(self._problems(name))
        results = {}
        for system in stage.systems:
            generate = _LazyGenerator(self, name, system)
            results[system] = {}
            for benchmark, asked in problems.items():
                results[system][benchmark] = runner.evaluate(
                    system, benchmarks.get(benchmark), asked, generate, self.config.template,
                    str(folder), generate.settings,
                    max_new_tokens=stage.benchmarks[benchmark].max_new_tokens,
                )  # fmt: skip
        if stage.numbers_only:
            seen = load_examples(stage.numbers_only, self._cache_dir() / "datasets")
            for benchmark, asked in problems.items():
                results.setdefault("numbers_only", {})[benchmark] = _with_means(
                    numbers_only_accuracy(seen, asked)
                )
        if jax.process_index() == 0:
            scores.save_results(folder / "results.json", results)
        return {"systems": list(results)}

    def _problems(self, name: str) -> Iterator[tuple[str, list[dict]]]:
        for benchmark, settings in self.config[name].benchmarks.items():
            options = {key: settings[key] for key in settings if key != "max_new_tokens"}
            data_dir = self._cache_dir() / "datasets"
            yield benchmark, benchmarks.get(benchmark).load(data_dir, **options)

    # -- where things come from, and whether they are what they were ------------------------------

    def _weights(self, source: str):
        return self.workdir / source if source in self.names else source

    def _load(
        self, source: str, preset_name: str, tokenizer, mesh: Mesh, dtype: str | None = None
    ) -> Model:
        """A stage's or a directory's model; "random" is the preset with the recipe's seed."""
        if source != RANDOM:
            return load_model(self._weights(source), mesh=mesh, dtype=dtype)
        config = preset(preset_name, vocab_size=tokenizer.vocab_size)
        if dtype:
            config = dataclasses.replace(config, dtype=dtype)
        params = random_params(config, mesh, self.config.seed)
        return Model(config, params, tokenizer, self.config.template)

    def identity(self, source: str, preset_name: str) -> str:
        """A short name of weights that changes when they do."""
        if source == RANDOM:
            return f"{RANDOM} {preset_name} {self.config.seed}"
        path = self._weights(source)
        if hf.is_hf_directory(path):
            return f"{source} {TensorFiles(path).identity()}"
        stage_dir, step = stage_and_step(epath.Path(path))
        digest = hashlib.sha256((stage_dir / "stage.json").read_bytes() + b"%d" % step)
        return f"{source} {digest.hexdigest()[:16]}"

    def _sources(self, name: str) -> list[tuple[str, str]]:
        """The weights and files that a stage reads, each with the preset where it is random."""
        stage = self.config[name]
        if stage.kind == "train":
            sources = [(stage.init, stage.preset), (self.config.tokenizer, "")]
        elif stage.kind == "evaluate":
            sources = [s for system in stage.systems.values() for s in system_sources(system)]
        else:
            sources = []
        return [(source, preset_name) for source, preset_name in sources if source]

    def _check_order(self) -> None:
        for index, name in enumerate(self.names):
            check_stage(name, self.config[name])
            for source, preset_name in self._sources(name):
                if source == RANDOM:
                    self._check_random(name, preset_name)
                    continue
                if source in self.names[index:]:
                    raise ValueError(f"{name} needs {source}, which does not come before it")
                if source in self.names:
                    runs = name in self.chosen and source not in self.chosen
                    if runs and not self.is_done(source):
                        raise ValueError(
                            f"{name} needs {source}, which is not finished in {self.workdir}; run "
                            "it first (leave --stages out, or name it there too)"
                        )
                elif not epath.Path(source).exists():
                    raise ValueError(
                        f"{name} needs {source!r}, which is neither a stage ({_list(self.names)}) "
                        "nor a file or directory"
                    )

    def _check_random(self, name: str, preset_name: str) -> None:
        preset(preset_name)  # raises on a name that is not there
        if not self.config.tokenizer:
            raise ValueError(
                f"{name} starts from random weights, which have no tokenizer: "
                "--config.tokenizer must name a tokenizer.model or a directory with one"
            )

    def _matters(self, name: str) -> dict:
        """The part of the config that shapes what the stage leaves."""
        stage = _without(json.loads(json.dumps(self.config[name].to_dict())), FREE_KEYS)
        return stage | {"seed": self.config.seed, "template": self._template(name)}

    def _template(self, name: str) -> str:
        return self.config[name].get("template") or self.config.template

    def _check_unchanged(self, name: str) -> None:
        file = self.workdir / name / "stage.json"
        if self.config[name].kind == "evaluate" or not file.exists():
            return  # answers carry their settings themselves
        before = json.loads(file.read_text())["matters"]
        self._refuse(name, before, self._matters(name))

    def _record(self, name: str, **made_from) -> None:
        """Writes stage.json, or compares with the one that is there."""
        stage = self.config[name]
        made_from["init"] = self.identity(stage.init, stage.preset)
        record = {"matters": self._matters(name), "made_from": made_from}
        file = self.workdir / name / "stage.json"
        if file.exists():
            self._refuse(name, json.loads(file.read_text())["made_from"], made_from)
        else:
            self._write(name, "stage.json", record)

    def _refuse(self, name: str, before: dict, now: dict) -> None:
        before, now = _flat(before), _flat(now)
        changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
        if changed:
            what = [f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in changed]
            raise ValueError(
                f"{self.workdir / name} was made with other settings: {'; '.join(what)}. Take "
                "another --workdir, or delete that folder (and those of the stages after it)"
            )

    def _cache_dir(self) -> epath.Path:
        return epath.Path(self.config.cache_dir).expanduser()

    def _write(self, name: str, file: str, content: dict) -> None:
        if jax.process_index() == 0:
            folder = self.workdir / name
            folder.mkdir(parents=True, exist_ok=True)
            aside = folder / f".{file}"
            aside.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
            aside.replace(folder / file)


class _LazyGenerator:
    """A system's generator, which loads its models when there is a first question to answer."""

    def __init__(self, recipe: Recipe, stage: str, system: str):
        self._recipe, self._stage, self._mesh = recipe, recipe.config[stage], recipe.mesh(stage)
        self._system = self._stage.systems[system]
        self._sources = system_sources(self._system)
        self.settings = {
            "models": [recipe.identity(source, size) for source, size in self._sources],
            "dtype": self._stage.dtype,
        }
        if len(self._sources) == 3:
            self.settings["alpha"] = self._system.alpha

    @functools.cached_property
    def _generator(self) -> TextGenerator:
        recipe, dtype = self._recipe, self._stage.dtype
        models = [
            recipe._load(source, size, recipe.tokenizer_of(source), self._mesh, dtype)
            for source, size in self._sources
        ]
        combine = FirstModel() if len(models) == 1 else ProxyTuning(self._system.alpha)
        engine = Engine(
            [(model.config, model.params) for model in models], combine,
            eos_ids=(models[0].tokenizer.eos_id,), mesh=self._mesh, slots=self._stage.slots,
        )  # fmt: skip
        return TextGenerator(engine, models[0].tokenizer)

    def __call__(self, prompts, max_new_tokens):
        return self._generator(prompts, max_new_tokens)


def _directory_tokenizer(path: str) -> Tokenizer:
    if hf.is_hf_directory(path):
        return load_tokenizer(path)
    for folder in (epath.Path(path), *epath.Path(path).parents[:2]):
        if (folder / "tokenizer").exists():
            return load_tokenizer(str(folder / "tokenizer"))
    raise ValueError(f"{path} holds no tokenizer; name one with --config.tokenizer")


def _with_means(accuracy: dict[str, float]) -> dict[str, float]:
    others = [value for language, value in accuracy.items() if language != "en"]
    means = {"average": sum(accuracy.values()) / len(accuracy)}
    if others:
        means["non_english"] = sum(others) / len(others)
    return accuracy | {key: round(value, 2) for key, value in means.items()}


def _without(tree, keys):
    if not isinstance(tree, dict):
        return tree
    return {key: _without(value, keys) for key, value in tree.items() if key not in keys}


def _flat(tree: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _list(names) -> str:
    return ", ".join(names)
