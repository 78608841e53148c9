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
from qalign_jax.models.params import cast_params, check_divides
from qalign_jax.models.trainable import (
    WHOLE,
    Trainable,
    frozen_shapes,
    frozen_specs,
    join,
    trained_shapes,
    trained_specs,
)
from qalign_jax.parallel.mesh import AXES, BATCH, Parallelism, batch_shards, on_mesh, sharding_of
from qalign_jax.training.optimizer import OptimizerConfig, make_optimizer

Function = TypeVar("Function", bound=Callable)
BATCH_KEYS = ("tokens", "positions", "segment_ids", "targets", "loss_weights")


@struct.dataclass
class TrainState:
    """The state of training: updates done (int32), what is trained and its moments (f32).

    `frozen` is the rest of the parameters, {} where all are trained.
    """

    step: jax.Array
    params: dict
    moments: optax.OptState
    frozen: dict = struct.field(default_factory=dict)

    def parts(self) -> dict:
        """The state as checkpoints hold it; of a finished stage only `params` are kept."""
        return {"params": self.params, "optimizer": {"step": self.step, "moments": self.moments}}

    @classmethod
    def from_parts(cls, parts: dict, frozen: dict | None = None) -> "TrainState":
        return cls(params=parts["params"], frozen=frozen or {}, **parts["optimizer"])


def state_shardings(
    config: LlamaConfig, optimizer: OptimizerConfig, mesh: Mesh, trainable: Trainable = WHOLE
) -> Any:
    """A TrainState of NamedShardings; moments are sharded as their parameters."""
    specs, shapes = trained_specs(config, trainable), _shapes(config, optimizer, trainable)
    moments = optax.tree_utils.tree_map_params(
        make_optimizer(optimizer),
        lambda _, spec: spec,
        shapes.moments,
        specs,
        transform_non_params=lambda _: PartitionSpec(),
    )
    step: Any = PartitionSpec()
    return on_mesh(mesh, TrainState(step, specs, moments, frozen_specs(config, trainable)))


def abstract_state(
    config: LlamaConfig, optimizer: OptimizerConfig, mesh: Mesh, trainable: Trainable = WHOLE
) -> TrainState:
    """The state as ShapeDtypeStructs with shardings: for restoring, and for compiling ahead."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        _shapes(config, optimizer, trainable),
        state_shardings(config, optimizer, mesh, trainable),
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


def init_state(
    config: LlamaConfig,
    optimizer: OptimizerConfig,
    mesh: Mesh,
    params,
    trainable: Trainable = WHOLE,
    frozen: dict | None = None,
) -> TrainState:
    """A state at step 0 that takes over `params`, and `frozen`, sharded over the mesh already."""
    shardings = state_shardings(config, optimizer, mesh, trainable)
    moments = jax.jit(make_optimizer(optimizer).init, out_shardings=shardings.moments)(params)
    step = jax.device_put(jnp.int32(0), shardings.step)
    return TrainState(step, params, moments, frozen or {})


def _shapes(config: LlamaConfig, optimizer: OptimizerConfig, trainable: Trainable) -> TrainState:
    params = trained_shapes(config, trainable)[0]
    moments = jax.eval_shape(make_optimizer(optimizer).init, params)
    step: Any = jax.ShapeDtypeStruct((), jnp.int32)
    return TrainState(step, params, moments, frozen_shapes(config, trainable)[0])


def _cached(function: Function) -> Function:
    """functools.cache that keeps the type: linen modules are hashable, but not typed as such."""
    return functools.cache(function)  # pyright: ignore[reportReturnType]


@_cached
def loss_and_gradients(
    model: Llama, mesh: Mesh, micro_batches: int = 1, trainable: Trainable = WHOLE
):
    """A function (params, batch, frozen={}) -> (loss, gradients, trained tokens), for use in jit.

    The loss is the mean cross entropy in nats over the batch's trained tokens, all devices and
    micro-batches together: a micro-batch with more trained tokens weighs more. Gradients are those
    of `params`, the part that is trained.

    The batch is a dict of [B, T] arrays (BATCH_KEYS), rows split over the mesh's batch axes; where
    an adapter has dropout, there is `noise` too, keys [B].

    Raises:
      ValueError: the mesh does not divide the model.
    """
    config = model.config
    local = model.clone(parallel=Parallelism.manual(mesh), adapter=trainable.adapter)
    specs = trained_specs(config, trainable)
    check_divides(config, mesh, trainable.adapter is not None)

    def local_loss(params, frozen, rows):
        nll = local.apply(
            {"params": join(trainable, params, frozen)},
            *(rows[key] for key in ("tokens", "positions", "segment_ids", "targets")),
            rows.get("noise"),
            method="loss",
        )
        return jnp.sum(nll * rows["loss_weights"])

    def body(params, batch, frozen):
        if micro_batches == 1:
            # with respect to the weights in the compute dtype: their gradients then are as
            # narrow, while all of them are in memory at once
            weights = cast_params(params, model.execution.dtype)
            total, gradients = jax.value_and_grad(local_loss)(weights, frozen, batch)
        else:

            def accumulate(carry, rows):
                # the barrier keeps the TPU compiler from moving sums out of this loop: its pass
                # for that fails on meshes with tensor > 1
                step = jax.value_and_grad(local_loss)(params, frozen, rows)
                return jax.tree.map(jnp.add, carry, lax.optimization_barrier(step)), None

            split = jax.tree.map(lambda a: a.reshape(micro_batches, -1, *a.shape[1:]), batch)
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

    noise = {"noise": PartitionSpec(BATCH)} if drops(trainable) else {}
    batch_spec = dict.fromkeys(BATCH_KEYS, PartitionSpec(BATCH, None)) | noise
    scalar = PartitionSpec()
    mapped = jax.shard_map(
        body,
        mesh=mesh,
        in_specs=(specs, batch_spec, frozen_specs(config, trainable)),
        out_specs=(scalar, specs, scalar),
        check_vma=False,
    )
    return lambda params, batch, frozen=None: mapped(params, batch, frozen or {})


def drops(trainable: Trainable) -> bool:
    """Whether an adapter leaves out inputs while it is trained."""
    return trainable.adapter is not None and trainable.adapter.dropout > 0


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
    trainable: Trainable = WHOLE,
    seed: int = 0,
):
    """A jitted (state, batch, learning rate) -> (state, metrics); the old state is donated.

    Metrics: `loss` (nats a trained token), `grad_norm` (before clipping), `trained_tokens`, and
    `tokens`, all that are not padding. With `skip_nan` a step whose loss or norm is not finite
    leaves parameters and moments as they are. What dropout leaves out depends on `seed`, the step
    and the row's place in the batch.
    """
    gradient_function = loss_and_gradients(model, mesh, micro_batches, trainable)
    transform = make_optimizer(optimizer)

    def train_step(state, batch, learning_rate):
        if drops(trainable):
            key = jax.random.fold_in(jax.random.key(seed), state.step)
            rows = jnp.arange(len(batch["tokens"]))
            batch = {**batch, "noise": jax.vmap(jax.random.fold_in, (None, 0))(key, rows)}
        loss, gradients, trained = gradient_function(state.params, batch, state.frozen)
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
        return TrainState(state.step + 1, params, moments, state.frozen), metrics

    shardings = state_shardings(model.config, optimizer, mesh, trainable)
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
