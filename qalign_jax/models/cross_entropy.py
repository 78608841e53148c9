"""Cross entropy against a head whose vocabulary may be split over tensor, in chunks of rows."""

import jax
import jax.numpy as jnp

from qalign_jax.parallel.mesh import Parallelism

# Positions whose logits are in memory at once, a device: 512 x 32,000 in f32 are 62 MiB.
CHUNK = 512


def cross_entropy(hidden, kernel, targets, vocab_size: int, parallel: Parallelism) -> jax.Array:
    """Negative log likelihood of every target.

    The kernel is gathered once, before the loop over chunks, so that its gradient is summed up
    locally and scattered once.

    Args:
      hidden: [B, T, D]; kernel: [D, V], V local to the tensor shard; targets: [B, T] int32 in the
        whole vocabulary; vocab_size: columns from here on are padding.

    Returns:
      [B, T] f32, in nats.
    """
    batch, length, width = hidden.shape
    hidden = hidden.reshape(batch * length, width)
    targets = targets.reshape(-1)
    first = parallel.tensor_index() * kernel.shape[1]
    columns = first + jnp.arange(kernel.shape[1])

    @jax.checkpoint
    def chunk_loss(hidden, targets, kernel):
        logits = jnp.einsum("td,dv->tv", hidden, kernel, preferred_element_type=jnp.float32)
        logits = jnp.where(columns < vocab_size, logits, -1e30)
        largest = parallel.max_over_tensor(jax.lax.stop_gradient(logits).max(axis=-1))
        total = parallel.sum_over_tensor(jnp.exp(logits - largest[:, None]).sum(axis=-1))
        at_target = jnp.where(columns == targets[:, None], logits, 0.0).sum(axis=-1)
        return jnp.log(total) + largest - parallel.sum_over_tensor(at_target)

    size = min(CHUNK, batch * length)
    chunks = -(-batch * length // size)
    padding = chunks * size - batch * length
    hidden = jnp.pad(hidden, ((0, padding), (0, 0))).reshape(chunks, size, width)
    targets = jnp.pad(targets, (0, padding)).reshape(chunks, size)
    _, losses = jax.lax.scan(lambda _, xs: (None, chunk_loss(*xs, kernel)), None, (hidden, targets))
    return losses.reshape(-1)[: batch * length].reshape(batch, length)
