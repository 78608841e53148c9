"""The weights that recipes name, resolved to architecture, tokenizer, fingerprint and values."""

import dataclasses
from collections.abc import Mapping
from typing import Protocol

from etils import epath
from jax.sharding import Mesh

from qalign_jax.checkpoints import model as models
from qalign_jax.checkpoints.model import Card, Model
from qalign_jax.data.tokenizer import Tokenizer, difference, has_tokenizer, load_tokenizer
from qalign_jax.faults.checksums import check_sums
from qalign_jax.models.params import hold_and_free, random_params
from qalign_jax.models.presets import preset
from qalign_jax.models.quantization import INT8

RANDOM = "random"  # a name of weights: random values, in the size of a preset


@dataclasses.dataclass(frozen=True)
class Source:
    """The name of weights in a recipe: a stage, a directory, or RANDOM with a preset."""

    name: str
    preset: str = ""


class LeavesWeights(Protocol):
    """A stage, as others take weights from it."""

    @property
    def starts_from(self) -> Source | None:
        """None: the stage leaves no weights."""

    @property
    def template(self) -> str: ...


@dataclasses.dataclass(frozen=True)
class Resolver:
    """Resolves names of weights in a recipe and its workdir."""

    stages: Mapping[str, LeavesWeights]
    workdir: epath.Path  # a stage's weights are in the folder of its name
    tokenizer: str  # the recipe's: a stage, a file or a directory; "" takes that of the weights
    template: str
    seed: int

    def path(self, name: str) -> epath.Path:
        """The folder of a stage's name, or the directory that is named."""
        return self.workdir / name if name in self.stages else epath.Path(name)

    def exists(self, source: Source) -> bool:
        """Whether weights and tokenizer are there, and neither comes from a stage."""
        named = [self.tokenizer] if self.tokenizer else []
        if source.name != RANDOM:
            named.append(source.name)
        return all(name and name not in self.stages and epath.Path(name).exists() for name in named)

    def resolve(self, source: Source) -> "Weights":
        """The weights of a source.

        Raises:
          ValueError: a stage that leaves no weights.
        """
        return Weights(source, self)


class Weights:
    """Resolved weights; nothing is read before it is asked for."""

    def __init__(self, source: Source, resolver: Resolver):
        self._source, self._resolver = source, resolver
        self._parent: Weights | None = None  # the weights that a stage starts from
        self._template = resolver.template
        if stage := resolver.stages.get(source.name):
            if stage.starts_from is None:
                raise ValueError(f"no weights can come from {source.name}: it leaves none")
            self._parent = resolver.resolve(stage.starts_from)
            self._template = stage.template

    def card(self) -> Card:
        """Architecture, execution and template; those of a stage before it has run, too.

        Raises:
          ValueError: a preset that does not exist, or a directory without a model.
        """
        if self._parent:
            return self._parent.card()._replace(template=self._template)
        if self._source.name == RANDOM:
            return Card(*preset(self._source.preset), self._template)
        return models.read_card(self._source.name)

    def loaded_card(self) -> Card:
        """The card of what `load` returns: random weights have the tokenizer's vocabulary."""
        if self._source.name != RANDOM:
            return models.read_card(self._resolver.path(self._source.name))
        vocab_size = self.tokenizer().vocab_size
        return Card(*preset(self._source.preset, vocab_size=vocab_size), self._template)

    def tokenizer(self) -> Tokenizer:
        """The recipe's tokenizer, else the weights' own.

        Raises:
          ValueError: there is none, or the recipe's differs from that of a directory.
        """
        if self._parent:
            return self._parent.tokenizer()
        named, own = self._resolver.tokenizer, None
        if self._source.name != RANDOM:
            own = models.tokenizer_directory(self._source.name)
        if not named:
            if own is None or not has_tokenizer(own):
                raise ValueError(
                    f"{self._source.name} has no tokenizer; name one with --config.tokenizer"
                )
            return load_tokenizer(own)
        if named in self._resolver.stages:
            check_sums(self._resolver.path(named), ["tokenizer.model"])
        tokenizer = load_tokenizer(self._resolver.path(named))
        if own is not None and has_tokenizer(own):
            if found := difference(tokenizer, load_tokenizer(own)):
                raise ValueError(
                    f"tokenizer={named} is not that of {self._source.name}: {found}. Leave "
                    "--config.tokenizer empty, or take weights that belong to it"
                )
        return tokenizer

    def check_vocabulary(self) -> None:
        """Raises a ValueError where the tokenizer has pieces for which the model has no row."""
        if self._parent:
            self._parent.check_vocabulary()
        elif self._source.name != RANDOM:  # random weights have the rows that the tokenizer needs
            tokenizer, rows = self.tokenizer(), self.card().config.vocab_size
            if max(tokenizer.vocab_size, tokenizer.eos_id + 1) > rows:
                raise ValueError(
                    f"the tokenizer has {tokenizer.vocab_size} pieces, the model {rows}; they do "
                    "not belong together"
                )

    def fingerprint(self) -> str:
        """The name of the weights, and digits that change with them."""
        name = self._source.name
        if name == RANDOM:
            return f"{RANDOM} {self._source.preset} {self._resolver.seed}"
        return f"{name} {models.fingerprint(self._resolver.path(name))}"

    def load(self, mesh: Mesh, dtype: str | None = None, weights_dtype: str | None = None) -> Model:
        """The model on a mesh; `dtype` is that of weights and computation, `weights_dtype` is for
        decoding (load_model).

        Random weights are f32 and have as many vocabulary rows as the tokenizer has pieces.
        """
        tokenizer, name = self.tokenizer(), self._source.name
        if name != RANDOM:
            path = self._resolver.path(name)
            return models.load_model(
                path, mesh=mesh, dtype=dtype, tokenizer=tokenizer, weights_dtype=weights_dtype
            )
        config, execution, template = self.loaded_card()
        if dtype:
            execution = dataclasses.replace(execution, dtype=dtype)
        params = random_params(config, mesh, self._resolver.seed)
        if weights_dtype is not None:
            int8 = weights_dtype == INT8
            params = hold_and_free(config, params, execution.dtype, mesh, int8=int8)
        return Model(config, execution, params, tokenizer, template)
