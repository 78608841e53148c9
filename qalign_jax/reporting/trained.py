"""What of a model a training stage trained, as its model.json says."""

import dataclasses

from etils import epath

from qalign_jax.checkpoints.card import Card, card_of
from qalign_jax.models.adapter import MATRICES, Adapter
from qalign_jax.models.flops import num_trained
from qalign_jax.models.trainable import Trainable


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a stage trained, in words and numbers."""

    what: str  # such as "LoRA adapter of rank 8, alpha 16"
    parameters: int
    of: int  # the model's parameters, without an adapter
    base: str  # the frozen weights; "" where all are trained
    held_in: str  # the dtype of the base's matrices while training

    @property
    def share(self) -> float:
        """The trained parameters in per cent of the model's."""
        return 100 * self.parameters / self.of


def read(stage_dir: epath.Path) -> Trained | None:
    """What a stage trained, None where there is no model.json.

    Raises:
      ValueError: model.json is damaged.
    """
    if not (stage_dir / "model.json").exists():
        return None
    return describe(card_of(stage_dir))


def describe(card: Card) -> Trained:
    """What a model's card says."""
    own, count = card.part, card.config.num_parameters
    if own is None:
        return Trained("all weights", count, count, "", "")
    base = own.base.removeprefix("../")  # a stage of the same run
    held = "int8" if own.trainable.int8 else own.trainable.dtype
    trained = num_trained(card.config, own.trainable)
    return Trained(_words(own.trainable), trained, count, base, held)


def _words(trainable: Trainable) -> str:
    if trainable.adapter:
        return _adapter_words(trainable.adapter)
    first, last = trainable.layers or (0, 0)
    of = f"layers {first} to {last}" if last > first else f"layer {first}"
    return f"{_matrices(trainable.matrices)} of {of}"


def _adapter_words(adapter: Adapter) -> str:
    words = [f"LoRA adapter of rank {adapter.rank}", f"alpha {adapter.alpha:g}"]
    if adapter.scaling != "rank":
        words.append("rank-stabilised")
    if adapter.dropout:
        words.append(f"dropout {adapter.dropout:g}")
    return f"{', '.join(words)}, on {_matrices(adapter.matrices)}"


def _matrices(names: tuple[str, ...]) -> str:
    return "all matrices" if set(names) == set(MATRICES) else ", ".join(names)
