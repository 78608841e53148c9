"""A system: one model, or a large one that an expert steers against an anti-expert."""

import dataclasses
from collections.abc import Iterator, Sequence

from jax.sharding import Mesh

from qalign_jax.checkpoints.model import Model
from qalign_jax.data.tokenizer import Tokenizer, difference
from qalign_jax.decoding.combine import Combine, combination
from qalign_jax.decoding.engine import Engine
from qalign_jax.decoding.sampling import Sampling


@dataclasses.dataclass(frozen=True)
class System:
    """Loaded models, and how their logits are combined: made by `System.of`."""

    models: tuple[Model, ...]
    combine: Combine
    names: tuple[str, ...]  # of the models, for messages

    @classmethod
    def of(cls, models: Sequence[Model], names: Sequence[str], alpha: float = 1.0) -> "System":
        """A system of one model, or of (large, expert, anti-expert).

        Raises:
          ValueError: another number of models, or tokenizers that differ.
        """
        check_tokenizers(names, [model.tokenizer for model in models])
        return cls(tuple(models), combination(len(models), alpha), tuple(names))

    @property
    def tokenizer(self) -> Tokenizer:
        return self.models[0].tokenizer

    @property
    def template(self) -> str:
        """The prompt template that the tuned model was trained with."""
        return self.models[1 if len(self.models) > 1 else 0].template

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of prompts, BOS in front.

        Raises:
          ValueError: the models' tokenizers read one of the texts differently.
        """
        encoded = self.tokenizer.encode_prompts(texts)
        for name, model in zip(self.names[1:], self.models[1:], strict=True):
            other = model.tokenizer
            if other.fingerprint == self.tokenizer.fingerprint:
                continue
            for text, ids, others in zip(texts, encoded, other.encode_prompts(texts), strict=True):
                if ids != others:
                    raise _tokenizers_differ(self.names[0], name, f"{text!r} has other ids")
        return encoded

    def engine(
        self, *, mesh: Mesh | None = None, slots: int = 64, sampling: Sampling = Sampling()
    ) -> Engine:
        """An engine that decodes with these models; arguments and errors as of `Engine`."""
        return Engine(
            [(model.module, model.params) for model in self.models],
            self.combine,
            eos_ids=(self.tokenizer.eos_id,),
            mesh=mesh,
            slots=slots,
            sampling=sampling,
        )


class TextGenerator:
    """A system's engine with text in and out.

    The engine holds the weights in their compute dtype; the system's own are not kept.
    """

    def __init__(self, system: System, **options):
        """Takes the arguments of `System.engine`."""
        self._engine = system.engine(**options)
        self._encode, self._tokenizer = system.encode, system.tokenizer

    def __call__(
        self,
        prompts: Sequence[str],
        max_new_tokens: int,
        numbers: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, str, list[int]]]:
        """Yields (number, text, ids without EOS) as answers finish, in any order.

        Arguments and errors as in `Engine.generate`.
        """
        answers = self._engine.generate(self._encode(prompts), max_new_tokens, numbers)
        return ((number, self._tokenizer.decode(ids), ids) for number, ids in answers)


def check_tokenizers(names: Sequence[str], tokenizers: Sequence[Tokenizer]) -> None:
    """Raises a ValueError where tokenizers differ: logits of different pieces cannot be added."""
    for name, tokenizer in zip(names[1:], tokenizers[1:], strict=True):
        if found := difference(tokenizers[0], tokenizer):
            raise _tokenizers_differ(names[0], name, found)


def _tokenizers_differ(one: str, other: str, how: str) -> ValueError:
    return ValueError(
        f"the tokenizers of {one} and {other} differ: {how}; proxy-tuning adds up logits, so its "
        "models must share their tokenizer"
    )
