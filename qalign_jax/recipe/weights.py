"""The weights that recipes name, resolved to architecture, tokenizer, fingerprint and values."""

import dataclasses
from collections.abc import Mapping
from typing import Protocol

from etils import epath
from jax.sharding import Mesh

from qalign_jax.checkpoints import card as cards
from qalign_jax.checkpoints import part
from qalign_jax.checkpoints.card import Card
from qalign_jax.checkpoints.model import Model, load_model, load_trained
from qalign_jax.data.tokenizer import Tokenizer, difference, has_tokenizer, load_tokenizer
from qalign_jax.faults.checksums import check_sums
from qalign_jax.models.adapter import Adapter, attach
from qalign_jax.models.params import hold_and_free, random_params
from qalign_jax.models.presets import preset
from qalign_jax.models.quantization import INT8
from qalign_jax.models.trainable import Trainable, new_adapter

RANDOM = "random"  # a name of weights: random values, in the size of a preset


@dataclasses.dataclass(frozen=True)
class Source:
    """The name of weights in a recipe: a stage, a directory, BASE+ADAPTER of these two, or RANDOM
    with a preset.
    """

    name: str
    preset: str = ""
    rank: int = 0  # of an adapter beside random weights

    def each(self) -> list["Source"]:
        """Base and adapter as sources of their own, or this one."""
        base, adapter = part.split(self.name)
        return [Source(base, self.preset), Source(adapter)] if adapter else [self]


class LeavesWeights(Protocol):
    """A stage, as others take weights from it."""

    @property
    def starts_from(self) -> Source | None:
        """None: the stage leaves no weights."""

    @property
    def template(self) -> str: ...

    @property
    def leaves_part(self) -> Trainable | None:
        """What it trains, where that is not all weights."""

    @property
    def keeps_base(self) -> bool:
        """Whether its base is that of the adapter that it starts from, if it starts from one."""
        ...


@dataclasses.dataclass(frozen=True)
class Resolver:
    """Resolves names of weights in a recipe and its workdir."""

    stages: Mapping[str, LeavesWeights]
    workdir: epath.Path  # a stage's weights are in the folder of its name
    tokenizer: str  # the recipe's: a stage, a file or a directory; "" takes that of the weights
    template: str
    seed: int

    def path(self, name: str) -> epath.Path:
        """The folder of a stage's name, or the directory that is named, or both of BASE+ADAPTER."""
        if name in self.stages:
            return self.workdir / name
        base, adapter = part.split(name)
        if adapter:
            return epath.Path(part.join(self.path(base), self.path(adapter)))
        return epath.Path(name)

    def exists(self, source: Source) -> bool:
        """Whether weights and tokenizer are there, and neither comes from a stage."""
        named = [self.tokenizer] if self.tokenizer else []
        if source.name != RANDOM:
            named += [each.name for each in source.each()]
        return all(name and name not in self.stages and epath.Path(name).exists() for name in named)

    def knows(self, source: Source) -> bool:
        """Whether the weights come from stages or are there."""
        names = [each.name for each in source.each()]
        return all(name in self.stages or (name and epath.Path(name).exists()) for name in names)

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
        for name in [each.name for each in source.each()]:
            if not (stage := resolver.stages.get(name)):
                continue
            if stage.starts_from is None:
                raise ValueError(f"no weights can come from {name}: it leaves none")
            self._parent = self._parent or resolver.resolve(stage.starts_from)
            self._template = stage.template

    @property
    def name(self) -> str:
        return self._source.name

    @property
    def path(self) -> epath.Path:
        """The directory of weights that are not random."""
        return self._resolver.path(self._source.name)

    def card(self) -> Card:
        """Architecture, execution and template; those of a stage before it has run, too.

        Raises:
          ValueError: a preset that does not exist, or a directory without a model.
        """
        if self._parent:
            return self._parent.card()._replace(template=self._template)
        if self._source.name == RANDOM:
            return Card(*preset(self._source.preset), self._template)
        return cards.read_card(self.path)

    def part(self) -> Trainable | None:
        """What the weights are, where the rest is those of a base.

        Raises:
          ValueError: a directory without a model.
        """
        *_, last = self._source.each()
        if stage := self._resolver.stages.get(last.name):
            return stage.leaves_part
        if self._source.name == RANDOM:
            return Trainable(Adapter(self._source.rank)) if self._source.rank else None
        return cards.part_in(self._resolver.path(last.name))

    @property
    def _adapter(self) -> Adapter | None:
        part = self.part()
        return part and part.adapter

    def base(self) -> Source | None:
        """The base that the weights' adapter belongs to.

        Raises:
          ValueError: as `base_of` of checkpoints/card.py.
        """
        if not self._adapter:
            return None
        if self._source.name == RANDOM:
            return dataclasses.replace(self._source, rank=0)
        first, *adapter = self._source.each()
        if adapter:
            return first
        stage = self._resolver.stages.get(first.name)
        if stage is None or stage.starts_from is None:
            return Source(cards.base_of(self.path))
        parent = self._resolver.resolve(stage.starts_from)
        return (stage.keeps_base and parent.base()) or stage.starts_from

    def shares_base(self, other: "Weights", weights_dtype: str) -> bool:
        """Whether the weights are an adapter that was trained beside the other weights, as decoding
        holds them in this dtype."""
        part, base = self.part(), self.base()
        if base is None or part is None or not part.fits_beside(weights_dtype):
            return False
        if RANDOM in (base.name, other.name):
            return base == other._source
        return cards.is_same_folder(self._resolver.path(base.name), other.path)

    def load_adapter(self, mesh: Mesh):
        """The weights' adapter alone, f32, on a mesh (`load_trained` of checkpoints/model.py)."""
        return load_trained(self.path, cards.read_card(self.path), mesh)

    def loaded_card(self) -> Card:
        """The card of what `load` returns: random weights have the tokenizer's vocabulary."""
        if self._source.name != RANDOM:
            return cards.read_card(self.path)
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
            own = cards.tokenizer_directory(self.path)
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
        return f"{name} {cards.fingerprint(self.path)}"

    def load(
        self, mesh: Mesh, dtype: str | None = None, weights_dtype: str | None = None, **options
    ) -> Model:
        """The model on a mesh; `dtype` is that of weights and computation, `weights_dtype` is for
        decoding, and with the other options as of `load_model`; random weights ignore those.

        Random weights are f32 and have as many vocabulary rows as the tokenizer has pieces.
        """
        tokenizer, name = self.tokenizer(), self._source.name
        if name != RANDOM:
            return load_model(
                self.path, mesh=mesh, dtype=dtype, tokenizer=tokenizer, weights_dtype=weights_dtype,
                **options,
            )  # fmt: skip
        config, execution, template, _ = self.loaded_card()
        if dtype:
            execution = dataclasses.replace(execution, dtype=dtype)
        params, adapter = random_params(config, mesh, self._resolver.seed), self._adapter
        if weights_dtype is not None:
            int8 = weights_dtype == INT8
            params = hold_and_free(config, params, execution.dtype, mesh, int8=int8)
            if adapter:
                pairs = new_adapter(config, adapter, mesh, self._resolver.seed)
                params = attach(adapter, params, pairs)
        return Model(config, execution, params, tokenizer, template, adapter)
