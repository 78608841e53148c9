"""The package in a notebook: loads a model, or a steered one, and generates text; runs recipes.

What the commands do is here as functions that return what the commands print as JSON, a dict that a
notebook shows as a table. Progress goes to stderr.
"""

import json
import os
import pathlib
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from qalign_jax import logs
from qalign_jax.data.prompts import render
from qalign_jax.decoding.draft_length import AUTO
from qalign_jax.decoding.sampling import Sampling
from qalign_jax.decoding.system import Answer, System, TextGenerator, Token
from qalign_jax.evaluation import predictions as predictions_of
from qalign_jax.parallel.mesh import make_mesh
from qalign_jax.recipe import file, recipe
from qalign_jax.reporting import notebook, page
from qalign_jax.reporting.notebook import Result, ShownTrace

# The file of a recipe that is given to another process.
_RECIPE = """import pickle
from ml_collections import ConfigDict

def get_config():
    return ConfigDict(pickle.loads({!r}))
"""


class LanguageModel:
    """A loaded system: text in, text out."""

    def __init__(self, system: System, mesh: Mesh | None = None):
        self._template = system.template
        self._loaded = TextGenerator(system, mesh=mesh)  # the one that keeps the weights

    @property
    def template(self) -> str:
        """The prompt template of `answer`, a name or a text with {instruction}."""
        return self._template

    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 512,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        slots: int = 64,
    ) -> list[str]:
        """Continues every prompt, taken as it is; returns the continuations in order.

        Args:
          max_new_tokens: the most tokens of a continuation.
          temperature: 0 is greedy.
          top_p: samples among the most probable tokens of this mass.
          seed: of the samples.
          slots: prompts decoded at once; 0 takes as many as memory holds.

        Raises:
          ValueError: a prompt that fills the model's length, or a number out of its range.
        """
        sampling = Sampling(temperature, top_p, seed)
        answers = self._continue(prompts, max_new_tokens, slots=slots, sampling=sampling)
        return [answer.text for answer in answers]

    def stream(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 512,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        slots: int = 64,
    ) -> Iterator[Token]:
        """Continues every prompt as `generate` does, with the same arguments and errors.

        >>> model = qalign_jax.load("runs/demo/response_alignment")
        >>> tokens = model.stream(["Tom has 12 oranges."], max_new_tokens=8)
        >>> "".join(text for number, token, text in tokens)
        '...'

        Yields:
          (number of the prompt, token id, text) as tokens come, a few of every prompt at a time.
          The texts of a prompt together are what `generate` returns for it. A token whose
          character is not complete comes with the token that completes it, which has the text.
          Closing the iterator ends the decoding and frees its memory; the model stays loaded.
        """
        generator = self._generator(
            prompts, slots=slots, sampling=Sampling(temperature, top_p, seed)
        )
        return generator.stream(prompts, max_new_tokens)

    def trace(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 512,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        slots: int = 64,
    ) -> list[ShownTrace]:
        """Continues every prompt as `generate` does, with the same arguments and errors.

        Returns:
          of each prompt, in order: the tokens, what the large model alone would have said in their
          places, and how far expert and anti-expert moved them (decoding/trace.py). A notebook
          shows it in colour.
        """
        sampling = Sampling(temperature, top_p, seed)
        options = dict(slots=slots, sampling=sampling, trace=True)
        answers = self._continue(prompts, max_new_tokens, **options)
        return [ShownTrace(**vars(answer.trace)) for answer in answers]

    def _continue(self, prompts: Sequence[str], max_new_tokens: int, **options) -> list[Answer]:
        generator = self._generator(prompts, **options)
        return sorted(generator(prompts, max_new_tokens), key=lambda answer: answer.number)

    def _generator(self, prompts: Sequence[str], **options) -> TextGenerator:
        if isinstance(prompts, str):
            raise ValueError("prompts is one text; give a list of them")
        return self._loaded.with_options(**options)

    def answer(self, questions: Sequence[str], max_new_tokens: int = 512, **options) -> list[str]:
        """As `generate`, with each question put into the prompt template."""
        if isinstance(questions, str):
            raise ValueError("questions is one text; give a list of them")
        prompts = [render(self.template, question) for question in questions]
        return self.generate(prompts, max_new_tokens, **options)


def load(
    directory: str | os.PathLike,
    *,
    mesh: str = "",
    dtype: str = "",
    weights_dtype: str = "",
    cache_dtype: str = "",
    draft: str | os.PathLike = "",
    draft_tokens: int | str = AUTO,
) -> LanguageModel:
    """Loads a model from a stage's folder or a Hugging Face directory, or one with an adapter.

    >>> model = qalign_jax.load("runs/demo/response_alignment")
    >>> model.answer(["Tom has 12 oranges. He buys 5 more. How many are there?"], max_new_tokens=8)
    ['...']

    Args:
      directory: a directory, or BASE+ADAPTER: the base's directory, and the adapter's of PEFT or of
        a stage. The folder of a stage that trained an adapter finds its base itself, as long as
        that lies where it lay. Adapters are merged into their base, or stay beside it in int8.
      mesh: such as fsdp:4,tensor:2, to split the weights over devices; one device by default.
      dtype: float32 or bfloat16; the model's own by default.
      weights_dtype, cache_dtype: "int8" keeps the layers' weights, or keys and values, in half the
        memory of bfloat16; README.md has the errors.
      draft: what drafts tokens, which the model then judges several at once: the directory of a
        smaller model with its tokenizer, or "lookup", the text so far. Answers are the same.
      draft_tokens: drafts a round, "auto" by default; 0 for plain decoding.

    Raises:
      ValueError: there is no model, or a part of it is missing; an adapter of another base;
        another dtype than these; a draft whose tokenizer differs.
    """
    options = dict(weights_dtype=weights_dtype, cache_dtype=cache_dtype)
    return _load([directory], 1.0, mesh, dtype, **options, draft=draft, draft_tokens=draft_tokens)


def ProxyTuned(
    large: str | os.PathLike,
    expert: str | os.PathLike,
    antiexpert: str | os.PathLike,
    *,
    alpha: float = 1.0,
    mesh: str = "",
    dtype: str = "",
    weights_dtype: str = "",
    cache_dtype: str = "",
    draft: str | os.PathLike = "",
    draft_tokens: int | str = AUTO,
) -> LanguageModel:
    """Loads a large model, steered by a tuned small one against the same untuned.

    Logits are large + alpha * (expert - antiexpert) (arXiv 2401.08565).

    >>> tuned, untuned = "runs/demo/response_alignment", "runs/demo/pretraining"
    >>> steered = qalign_jax.ProxyTuned("runs/demo/large_pretraining", tuned, untuned)
    >>> steered.generate(["Q: How many? A:"], max_new_tokens=8)
    ['...']

    Args:
      large, expert, antiexpert: as the directory of `load`; expert is the small model tuned,
        antiexpert the same untuned. Where expert is an adapter of antiexpert ("ANTI+ADAPTER", or
        the folder of a stage that trained it), the weights of both are in memory once.
      mesh, dtype, weights_dtype, cache_dtype: as in `load`, of all three models.
      draft, draft_tokens: as in `load`; by default the expert drafts.

    Raises:
      ValueError: as `load`, or tokenizers that differ.
    """
    models = [large, expert, antiexpert]
    options = dict(weights_dtype=weights_dtype, cache_dtype=cache_dtype)
    return _load(models, alpha, mesh, dtype, **options, draft=draft, draft_tokens=draft_tokens)


def run(
    config: str | ConfigDict = file.DEFAULT,
    workdir: str | os.PathLike = "",
    stages: Sequence[str] = (),
    *,
    overrides: Mapping[str, Any] = {},
    profile: str = "",
) -> Result:
    """Runs a recipe and writes its page; what is finished is skipped, what was stopped goes on.

    >>> outcome = qalign_jax.run("configs/demo.py", overrides={"fast": True})
    >>> outcome["workdir"], outcome["stages"]["evaluation"]
    ('runs/demo', 'done')
    >>> sorted(outcome["systems"])
    ['base', 'large', 'large_proxy', 'numbers_only', 'qalign', 'ralign']

    Args:
      config: a recipe's file with its argument, "configs/math_cot.py:llama2_7b,v5e-16", or what
        such a file's get_config returns.
      workdir: the run's folder; runs/<recipe> by default.
      stages: only these; all by default.
      overrides: keys of the recipe with their values, {"response_alignment.lr": 1e-5}, checked as
        on the command line.
      profile: the steps of every training stage to trace, like 10:15.

    Returns:
      {"workdir", "stages": {stage: "done"}, "systems": as in results.json, "report": path}.

    Raises:
      ValueError: a key, or a recipe that cannot run, before any device work.
      FloatingPointError: a loss that is not finite.
    """
    logs.show()
    outcome = recipe.run(file.read(config, overrides), workdir, stages, profile)
    return Result(outcome, notebook.run_html)


def report(workdir: str | os.PathLike) -> Result:
    """Writes a run's page again; returns {"workdir", "report": path}.

    >>> qalign_jax.report("runs/demo")["report"]
    'runs/demo/report.html'

    Raises:
      ValueError: the folder is none of a run, or one of its files is damaged.
    """
    outcome = {"workdir": os.fspath(workdir), "report": str(page.write(workdir))}
    return Result(outcome, notebook.report_html)


def score(benchmark: str, predictions: str | os.PathLike, *, execute: bool = False) -> Result:
    """Scores outputs that exist, from any system; accuracies are percentages.

    >>> german = "runs/demo/evaluation/qalign/word_problems/de.jsonl"
    >>> scored = qalign_jax.score("word_problems", german)
    >>> scored["n"], sorted(scored["accuracy"])
    (4, ['average', 'de', 'non_english'])

    Args:
      predictions: a file of JSON Lines: output, answer, and language on every line or on none.
      execute: run the programs in the outputs in a sandbox.

    Returns:
      {"benchmark", "n", "accuracy": {language: ..}, "sound": {..}, "intervals": {..}}.

    Raises:
      ValueError: naming file and line of what cannot be scored; a sandbox that does not start.
    """
    logs.show()
    return Result(predictions_of.score(benchmark, predictions, execute), notebook.score_html)


def fits(
    config: str | ConfigDict,
    topology: str,
    *,
    stages: Sequence[str] = (),
    overrides: Mapping[str, Any] = {},
    **flags: Any,
) -> Result:
    """Compiles a recipe ahead of time for a TPU slice: whether it fits, and what it would cost.

    The work is that of `python -m qalign_jax.fits`, in a process of its own: in this one, libtpu
    may serve the TPU that is here, and then compiles for no other.

    >>> found = qalign_jax.fits("configs/demo.py", "v5e:1x1", stages=["question_alignment"])
    >>> found["fits"], found["stages"]["question_alignment"]["fits"]
    (True, True)

    Args:
      config, stages, overrides: as in `run`.
      topology: the slice: v5e:1x1, v5p:4x4x4, or v5p-128, Google's name for it.
      flags: the command's others: slices=2, suggest=False, sweep=True, prompt_tokens=256, ...

    Returns:
      {"topology", "devices", "hbm_gib", "fits", "stages": {stage: {"fits", "peak_gib", ..}}, ..}.

    Raises:
      ValueError: a slice, a key or a stage that does not exist; libtpu is not installed.
      RuntimeError: the process ended otherwise; its output is above.
    """
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(config, ConfigDict):
            values = file.read(config, overrides).to_dict()
            config, overrides = f"{folder}/recipe.py", {}
            pathlib.Path(config).write_text(_RECIPE.format(pickle.dumps(values)))
        asked = [f"--config={config}", *file.arguments(overrides), f"--topology={topology}"]
        asked += [f"--stages={','.join(stages)}"]
        asked += [f"--{flag}={value}" for flag, value in flags.items()]
        return Result(_command("fits", asked), notebook.fits_html)


def _command(name: str, asked: Sequence[str]) -> dict[str, Any]:
    """The last line of a command's output; what it says on stderr appears here as it comes."""
    line, said = [sys.executable, "-m", f"qalign_jax.{name}", *asked], ""
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    ) as process:
        try:
            for said in process.stderr or ():
                print(said, end="", file=sys.stderr, flush=True)
            output = process.stdout.read() if process.stdout else ""
        except BaseException:
            process.kill()
            raise
    if process.returncode == 2:
        raise ValueError(said.removeprefix("error:").strip())
    if process.returncode:
        raise RuntimeError(f"{' '.join(line)} ended with status {process.returncode}: {said}")
    return json.loads(output.splitlines()[-1])


def _load(
    directories: list, alpha: float, mesh: str, dtype: str, *, draft_tokens: int | str, **options
) -> LanguageModel:
    if dtype not in ("", "float32", "bfloat16"):
        raise ValueError(f"dtype={dtype!r}: expected float32 or bfloat16")
    where = make_mesh(mesh) if mesh else None
    system = System.load(
        directories, alpha=alpha, mesh=where, dtype=dtype or None, draft_tokens=draft_tokens,
        **options,
    )  # fmt: skip
    return LanguageModel(system, where)
