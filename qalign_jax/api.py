"""The package in a notebook: loads a model, or a steered one, and generates text.

model = qalign_jax.load("runs/demo/response_alignment")
model.answer(["Tom has 12 oranges. He buys 5 more. How many oranges does Tom have now?"])

steered = qalign_jax.ProxyTuned(large, expert, antiexpert)
"""

import os
from collections.abc import Sequence

from jax.sharding import Mesh

from qalign_jax.data.prompts import render
from qalign_jax.decoding.sampling import Sampling
from qalign_jax.decoding.system import System, TextGenerator
from qalign_jax.parallel.mesh import make_mesh


class LanguageModel:
    """A loaded system: text in, text out."""

    def __init__(self, system: System, mesh: Mesh | None = None):
        self._system, self._mesh = system, mesh

    @property
    def template(self) -> str:
        """The prompt template of `answer`, a name or a text with {instruction}."""
        return self._system.template

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
          slots: prompts decoded at once.

        Raises:
          ValueError: a prompt that fills the model's length, or a number out of its range.
        """
        if isinstance(prompts, str):
            raise ValueError("prompts is one text; give a list of them")
        sampling = Sampling(temperature, top_p, seed)
        generator = TextGenerator(self._system, mesh=self._mesh, slots=slots, sampling=sampling)
        answers = {number: text for number, text, _ in generator(prompts, max_new_tokens)}
        return [answers[number] for number in range(len(prompts))]

    def answer(self, questions: Sequence[str], max_new_tokens: int = 512, **options) -> list[str]:
        """As `generate`, with each question put into the prompt template."""
        if isinstance(questions, str):
            raise ValueError("questions is one text; give a list of them")
        prompts = [render(self.template, question) for question in questions]
        return self.generate(prompts, max_new_tokens, **options)


def load(directory: str | os.PathLike, *, mesh: str = "", dtype: str = "") -> LanguageModel:
    """Loads a model from a stage's folder or a Hugging Face directory.

    Args:
      mesh: such as fsdp:4,tensor:2, to split the weights over devices; one device by default.
      dtype: float32 or bfloat16; the model's own by default.

    Raises:
      ValueError: there is no model, or a part of it is missing.
    """
    return _load([directory], 1.0, mesh, dtype)


def ProxyTuned(
    large: str | os.PathLike,
    expert: str | os.PathLike,
    antiexpert: str | os.PathLike,
    *,
    alpha: float = 1.0,
    mesh: str = "",
    dtype: str = "",
) -> LanguageModel:
    """Loads a large model, steered by a tuned small one against the same untuned.

    Logits are large + alpha * (expert - antiexpert) (arXiv 2401.08565).

    Args:
      large, expert, antiexpert: directories as `load` takes; expert is the small model tuned,
        antiexpert the same untuned.
      mesh, dtype: as in `load`.

    Raises:
      ValueError: as `load`, or tokenizers that differ.
    """
    return _load([large, expert, antiexpert], alpha, mesh, dtype)


def _load(directories: list, alpha: float, mesh: str, dtype: str) -> LanguageModel:
    if dtype not in ("", "float32", "bfloat16"):
        raise ValueError(f"dtype={dtype!r}: expected float32 or bfloat16")
    where = make_mesh(mesh) if mesh else None
    system = System.load(directories, alpha=alpha, mesh=where, dtype=dtype or None)
    return LanguageModel(system, where)
