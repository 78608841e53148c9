"""Trains a sentencepiece tokenizer on the text of data sets."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax

from qalign_jax import mistakes
from qalign_jax.data import prompts
from qalign_jax.data.examples import load_examples, source_mistakes
from qalign_jax.data.tokenizer import train_sentencepiece
from qalign_jax.faults.checksums import write_sums
from qalign_jax.recipe.stages.base import Run, Stage

_LIMITS = {"vocab_size": (256 + 4, 2**24)}  # every byte, and sentencepiece's own pieces


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainTokenizer(Stage):
    """BPE with byte fallback; leaves tokenizer.model."""

    vocab_size: int
    data: Mapping[str, Any]  # name -> data set (parts.source)
    symbols: tuple[str, ...] = ()  # texts that are pieces of their own

    USES_DEVICES: ClassVar[bool] = False

    def check(self) -> None:
        mistakes.refuse(mistakes.out_of_range(f"{self.name}.", vars(self), _LIMITS))

    def check_inputs(self, run: Run) -> None:
        mistakes.refuse(source_mistakes(f"{self.name}.data", self.data))

    def run(self, run: Run) -> dict[str, Any]:
        examples = [
            example
            for source in self.data.values()
            for example in load_examples(source, run.data_dir)
        ]
        texts = [
            (e["instruction"] and prompts.render(self.template, e["instruction"])) + e["response"]
            for e in examples
        ]
        if jax.process_index() == 0:
            train_sentencepiece(
                texts, self.vocab_size, run.workdir / self.name / "tokenizer.model",
                user_defined_symbols=tuple(self.symbols), seed=self.seed,
            )  # fmt: skip
            write_sums(run.workdir / self.name, besides=("done.json",))
        return {"texts": len(texts), "vocab_size": self.vocab_size}


STAGE = TrainTokenizer
