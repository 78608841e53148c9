"""One distribution from several models' logits: the first model's alone, or proxy-tuning.

Both are arguments of compiled programs: any alpha runs in the program of another.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct

MOST_ALPHA = 1000.0  # logits stay far from the ends of f32


@struct.dataclass
class FirstModel:
    """One model's logits as they are."""

    models = 1

    def __call__(self, logits: Sequence[jax.Array], vocab_size: int) -> jax.Array:
        return logits[0].astype(jnp.float32)


@struct.dataclass
class ProxyTuning:
    """A large model steered by a small one, tuned against untuned (Liu et al., arXiv 2401.08565).

    logits = large + alpha * (expert - anti-expert), on raw next-token logits.
    """

    alpha: float | jax.Array = 1.0  # f32 where it is traced
    models = 3

    def __post_init__(self):
        # NaN is in no range
        if isinstance(self.alpha, int | float) and not abs(self.alpha) <= MOST_ALPHA:
            raise ValueError(
                f"alpha={self.alpha}: expected a number from -{MOST_ALPHA:g} to {MOST_ALPHA:g}"
            )

    def __call__(self, logits: Sequence[jax.Array], vocab_size: int) -> jax.Array:
        """Combines [.., V padded] of each model, whose paddings may differ.

        Args:
          vocab_size: ids that all three models have; -1e30 from there on.

        Returns:
          [.., V of the smallest padding] f32.
        """
        width = min(one.shape[-1] for one in logits)
        large, expert, antiexpert = (one[..., :width].astype(jnp.float32) for one in logits)
        combined = large + self.alpha * (expert - antiexpert)
        # where one model masks a column, the sum is meaningless
        return jnp.where(jnp.arange(width) < vocab_size, combined, -1e30)


Combine = FirstModel | ProxyTuning


def combination(models: int, alpha: float = 1.0) -> Combine:
    """What combines the logits of one model, or of three.

    Raises:
      ValueError: another number of models.
    """
    if models not in (FirstModel.models, ProxyTuning.models):
        raise ValueError(f"{models} models: a system has one, or a large one with two small ones")
    return FirstModel() if models == 1 else ProxyTuning(float(alpha))
