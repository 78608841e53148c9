"""AdamW as the paper uses it, and its learning-rate schedule."""

import dataclasses
import math

import optax


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The paper's values (section 4.1 and its authors' scripts); the rate comes from `Schedule`."""

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0  # global norm of the gradient; 0 leaves it alone


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Linear warm-up over a share of the steps, then half a cosine to zero.

    The value is a function on the host, and an argument of the compiled step: stages that differ
    in nothing but their rate share one program.
    """

    lr: float
    steps: int
    warmup: float = 0.03

    def __call__(self, step: int) -> float:
        """The rate of update `step`, counted from 0, as transformers' cosine schedule has it."""
        warmup_steps = math.ceil(self.warmup * self.steps)
        if step < warmup_steps:
            return self.lr * step / warmup_steps
        progress = (step - warmup_steps) / max(1, self.steps - warmup_steps)
        return self.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Clipping, Adam and decay; the caller multiplies the result by minus the learning rate."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip) if config.clip else optax.identity(),
        optax.scale_by_adam(config.b1, config.b2, config.eps),
        optax.add_decayed_weights(config.weight_decay),
    )
