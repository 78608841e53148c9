"""The training step: loss and gradients in one shard_map over the whole mesh, then the update.

Left to the partitioner, every gradient becomes an all-reduce of full size; written by hand, the
weights are gathered over fsdp one layer at a time and their gradients scattered back.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qalign_jax.models.config import LlamaConfig
from qalign_jax.models.llama import Llama
from qalign_jax.models.params import cast_params, check_divides, init_params, param_specs
from qalign_jax.parallel.mesh import AXES, BATCH, Parallelism, batch_shards, on_mesh, sharding_of
from qalign_jax.training.optimizer import OptimizerConfig, make_optimizer

Function = TypeVar("Function", bound=Callable)
BATCH_KEYS = ("tokens", "positions", "segment_ids", "targets", "loss_weights")


@struct.dataclass
class TrainState:
    """The state of training: updates done (int32), parameters and moments (f32)."""

    step: jax.Array
    params: dict
    moments: optax.OptState

    def parts(self) -> dict:
        """The state as checkpoints hold it; of a finished stage only `params` are kept."""
        return {"params": self.params, "optimizer": {"step": self.step, "moments": self.moments}}

    @classmethod
    def from_parts(cls, parts: dict) -> "TrainState":
        return cls(params=parts["params"], **parts["optimizer"])


def state_shardings(config: LlamaConfig, optimizer: OptimizerConfig, mesh: Mesh) -> Any:
    """A TrainState of NamedShardings; moments are sharded as their parameters."""
    specs = param_specs(config)
    shapes = jax.eval_shape(lambda: _fresh_state(config, optimizer, jax.random.key(0)))
    moments = optax.tree_utils.tree_map_params(
        make_optimizer(optimizer),
        lambda _, spec: spec,
        shapes.moments,
        specs,
        transform_non_params=lambda _: PartitionSpec(),
    )
    step: Any = PartitionSpec()
    return on_mesh(mesh, TrainState(step=step, params=specs, moments=moments))


def abstract_state(config: LlamaConfig, optimizer: OptimizerConfig, mesh: Mesh) -> TrainState:
    """The state as ShapeDtypeStructs with shardings: for restoring, and for compiling ahead."""
    shapes = jax.eval_shape(lambda: _fresh_state(config, optimizer, jax.random.key(0)))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        state_shardings(config, optimizer, mesh),
    )


def abstract_batch(mesh: Mesh, rows: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of packed rows as ShapeDtypeStructs with shardings."""
    sharding = sharding_of(mesh, ("batch", "length"))
    return {
        key: jax.ShapeDtypeStruct(
            (rows, length), jnp.float32 if key == "loss_weights" else jnp.int32, sharding=sharding
        )
        for key in BATCH_KEYS
    }


def init_state(config: LlamaConfig, optimizer: OptimizerConfig, mesh: Mesh, params) -> TrainState:
    """A state at step 0 that takes over `params`, sharded over the mesh already."""
    shardings = state_shardings(config, optimizer, mesh)
    moments = jax.jit(make_optimizer(optimizer).init, out_shardings=shardings.moments)(params)
    return TrainState(jax.device_put(jnp.int32(0), shardings.step), params, moments)


def _fresh_state(config, optimizer, key):
    params = init_params(config, key)
    return TrainState(jnp.int32(0), params, make_optimizer(optimizer).init(params))


def _cached(function: Function) -> Function:
    """functools.cache that keeps the type: linen modules are hashable, but not typed as such."""
    return functools.cache(function)  # pyright: ignore[reportReturnType]


@_cached
def loss_and_gradients(model: Llama, mesh: Mesh, micro_batches: int = 1):
    """A function (params, batch) -> (loss, gradients, trained tokens), for use under jit.

    The loss is the mean cross entropy in nats over the batch's trained tokens, all devices and
    micro-batches together: a micro-batch with more trained tokens weighs more.

    The batch is a dict of [B, T] arrays (BATCH_KEYS), rows split over the mesh's batch axes.

    Raises:
      ValueError: the mesh does not divide the model.
    """
    config = model.config
    local = model.clone(parallel=Parallelism.manual(mesh))
    specs = param_specs(config)
    check_divides(config, mesh)

    def local_loss(params, rows):
        nll = local.apply(
            {"params": params},
            *(rows[key] for key in ("tokens", "positions", "segment_ids", "targets")),
            method="loss",
        )
        return jnp.sum(nll * rows["loss_weights"])

    def body(params, batch):
        if micro_batches == 1:
            # with respect to the weights in the compute dtype: their gradients then are as
            # narrow, while all of them are in memory at once
            weights = cast_params(params, model.execution.dtype)
            total, gradients = jax.value_and_grad(local_loss)(weights, batch)
        else:

            def accumulate(carry, rows):
                # the barrier keeps the TPU compiler from moving sums out of this loop: its pass
                # for that fails on meshes with tensor > 1
                step = lax.optimization_barrier(jax.value_and_grad(local_loss)(params, rows))
                return jax.tree.map(jnp.add, carry, step), None

            split = jax.tree.map(lambda a: a.reshape(micro_batches, -1, a.shape[-1]), batch)
            zeros = (jnp.float32(0), jax.tree.map(jnp.zeros_like, params))
            (total, gradients), _ = lax.scan(accumulate, zeros, split)
        trained = lax.psum(jnp.sum(batch["loss_weights"]), BATCH)
        share = 1 / jnp.maximum(trained, 1)
        gradients = jax.tree.map(
            lambda gradient, spec: (
                _sum_over(gradient.astype(jnp.float32), _axes_left(spec)) * share
            ),
            gradients,
            specs,
        )
        return lax.psum(total, BATCH) * share, gradients, trained

    batch_spec = dict.fromkeys(BATCH_KEYS, PartitionSpec(BATCH, None))
    scalar = PartitionSpec()
    return jax.shard_map(
        body,
        mesh=mesh,
        in_specs=(specs, batch_spec),
        out_specs=(scalar, specs, scalar),
        check_vma=False,
    )


def _axes_left(spec: PartitionSpec) -> tuple[str, ...]:
    """The axes that a parameter is not split over, so that its gradient is summed there."""
    used = jax.tree.leaves(tuple(spec))  # entries are names, tuples of names, or None
    return tuple(axis for axis in AXES if axis not in used)


def _sum_over(x, axes):
    return lax.psum(x, axes) if axes else x


@_cached
def make_train_step(
    model: Llama,
    optimizer: OptimizerConfig,
    mesh: Mesh,
    micro_batches: int = 1,
    skip_nan: bool = False,
):
    """A jitted (state, batch, learning rate) -> (state, metrics); the old state is donated.

    Metrics: `loss` (nats a trained token), `grad_norm` (before clipping), `trained_tokens`, and
    `tokens`, all that are not padding. With `skip_nan` a step whose loss or norm is not finite
    leaves parameters and moments as they are.
    """
    gradient_function = loss_and_gradients(model, mesh, micro_batches)
    transform = make_optimizer(optimizer)

    def train_step(state, batch, learning_rate):
        loss, gradients, trained = gradient_function(state.params, batch)
        updates, moments = transform.update(gradients, state.moments, state.params)
        params = jax.tree.map(lambda p, u: p - learning_rate * u, state.params, updates)
        norm = optax.tree.norm(gradients)
        if skip_nan:
            finite = jnp.isfinite(loss) & jnp.isfinite(norm)
            params, moments = jax.tree.map(
                functools.partial(jnp.where, finite),
                (params, moments),
                (state.params, state.moments),
            )
        metrics = {
            "loss": loss,
            "grad_norm": norm,
            "trained_tokens": trained,
            "tokens": jnp.sum(batch["segment_ids"] > 0),
        }
        return TrainState(state.step + 1, params, moments), metrics

    shardings = state_shardings(model.config, optimizer, mesh)
    rows = sharding_of(mesh, ("batch", "length"))
    scalar = NamedSharding(mesh, PartitionSpec())
    return jax.jit(
        train_step,
        in_shardings=(shardings, dict.fromkeys(BATCH_KEYS, rows), scalar),
        out_shardings=(shardings, scalar),
        donate_argnums=0,
    )


def rows_multiple(mesh: Mesh, micro_batches: int) -> int:
    """The rows of a batch must be a multiple of this."""
    return batch_shards(mesh) * micro_batches
