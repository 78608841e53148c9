"""LLaMA in flax linen: one functional module for training, prefill and decoding.

Shape letters: B batch, T query length, S key length, D model, F feed-forward, N query heads,
K key-value heads, G = N/K, H head size, V vocabulary (padded), L layers.

The module runs inside a shard_map, where weights are local and gathered explicitly, and in
automatic mode, where the partitioner does both: its `Parallelism` has the collectives.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from qalign_jax.models.adapter import Adapter
from qalign_jax.models.attention import (
    attend,
    attend_cache,
    cache_mask,
    cudnn_attend,
    packed_kernel,
    packed_mask,
    rope_frequencies,
    rotate,
    splash_attend,
)
from qalign_jax.models.blocked_attention import blocked_attend
from qalign_jax.models.cache import cache_axes, cache_length, layer_of, write_cache
from qalign_jax.models.config import REMAT_POLICIES, Execution, LlamaConfig
from qalign_jax.models.cross_entropy import cross_entropy
from qalign_jax.models.projection import parameter, project
from qalign_jax.parallel.mesh import Parallelism


class RMSNorm(nn.Module):
    config: LlamaConfig
    execution: Execution
    parallel: Parallelism

    @nn.compact
    def __call__(self, x):
        scale = parameter(self, "scale", (self.config.d_model,), ("norm",), None)
        wide = x.astype(jnp.float32)
        wide *= jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.config.norm_eps)
        return (wide * scale).astype(x.dtype)


class Attention(nn.Module):
    config: LlamaConfig
    execution: Execution
    parallel: Parallelism
    adapter: Adapter | None

    @nn.compact
    def __call__(self, x, before, positions, mask, cache, layer, kernel, noise):
        """Attends among x's own tokens, or, with a cache, to the cache they are written to first.

        Args:
          x: [B, T / tensor, D]; positions: [B, T] int32.
          before: keys and values [B, S', K, H] of the tokens in front of x's own, or None.
          cache: of all layers, or where `layer` is None of this one.
          kernel: of attention among own tokens, a name that `packed_kernel` returns.
          mask: [B, T, S] bool; for splash and blocked the segment ids [B, T], of which they make
            their own. S counts `before` and own tokens, or the first positions of the cache.
          noise: as of `project`.

        Returns:
          the output [B, T / tensor, D], the cache, and the keys and values [B, T, K, H] of x.
        """
        config = self.config
        queries = (config.d_model, config.n_heads, config.head_size)
        kv = (config.d_model, config.n_kv_heads, config.head_size)
        kv_axes = ("embed", "kv_heads", "head_size")
        x = self.parallel.gather_length(x)
        q_axes = ("embed", "heads", "head_size")
        q = project(self, "query", "btd,dnh->btnh", x, queries, q_axes, noise)
        k = project(self, "key", "btd,dkh->btkh", x, kv, kv_axes, noise)
        v = project(self, "value", "btd,dkh->btkh", x, kv, kv_axes, noise)

        splash = cache is None and kernel == "splash"
        frequencies = rope_frequencies(config.head_size, config.rope_theta, config.rope_scaling)
        q = rotate(q, positions, frequencies, config.head_size**-0.5 if splash else 1.0)
        k = rotate(k, positions, frequencies)
        q, k, v = (checkpoint_name(a, "qkvo") for a in (q, k, v))
        if cache is not None:
            cache = write_cache(config, cache, layer, positions, k, v)
            own = layer_of(config, cache, layer, mask.shape[-1])
            out = attend_cache(q, own, cache_axes(config, layer is None), mask)
        elif splash:
            interpret = self.parallel.platform != "tpu"
            out = splash_attend(q, k, v, mask, config.sliding_window, interpret)
        elif kernel == "blocked":
            out = blocked_attend(q, k, v, mask, config.sliding_window)
        elif kernel == "cudnn":
            out = checkpoint_name(cudnn_attend(q, k, v, mask), "qkvo")
        else:
            keys, values = k, v
            if before is not None:
                keys = jnp.concatenate([before[0], k], axis=1)
                values = jnp.concatenate([before[1], v], axis=1)
            out = attend(q, keys.swapaxes(1, 2), values.swapaxes(1, 2), mask)
            out = checkpoint_name(out, "qkvo")
        output = (config.n_heads, config.head_size, config.d_model)
        out_axes = ("heads", "head_size", "embed")
        out = project(self, "out", "btnh,nhd->btd", out, output, out_axes, noise)
        out = checkpoint_name(self.parallel.scatter_length(out), "qkvo")
        return out, cache, (k, v)


class FeedForward(nn.Module):
    config: LlamaConfig
    execution: Execution
    parallel: Parallelism
    adapter: Adapter | None

    @nn.compact
    def __call__(self, x, noise):
        shape = (self.config.d_model, self.config.d_ff)
        x = self.parallel.gather_length(x)
        gate = project(self, "gate", "btd,df->btf", x, shape, ("embed", "mlp"), noise)
        up = project(self, "up", "btd,df->btf", x, shape, ("embed", "mlp"), noise)
        gate, up = (checkpoint_name(a, "mlp") for a in (gate, up))
        hidden = jax.nn.silu(gate) * up
        out = project(self, "down", "btf,fd->btd", hidden, shape[::-1], ("mlp", "embed"), noise)
        return self.parallel.scatter_length(out)


class Block(nn.Module):
    """One layer, shaped for nn.scan: the carry is (x, cache, layer number).

    The number is None where the cache is this layer's alone. What the scan stacks of every layer is
    `keep(x, (keys, values))`.
    """

    config: LlamaConfig
    execution: Execution
    parallel: Parallelism
    adapter: Adapter | None

    @nn.compact
    def __call__(self, carry, before, positions, mask, keep, kernel, noise):
        x, cache, layer = carry
        if noise is not None:
            noise = jax.vmap(jax.random.fold_in, (0, None))(noise, layer)
        shared = (self.config, self.execution, self.parallel)
        norm = functools.partial(RMSNorm, *shared)
        out, cache, kv = Attention(*shared, self.adapter, name="attention")(
            norm(name="attention_norm")(x), before, positions, mask, cache, layer, kernel, noise
        )
        x = x + out
        feed_forward = FeedForward(*shared, self.adapter, name="mlp")
        x = x + feed_forward(norm(name="mlp_norm")(x), noise)
        return (x, cache, None if layer is None else layer + 1), keep(x, kv)


def _keep_nothing(x, kv):
    return None


def _keep_kv(x, kv):
    return kv


class Llama(nn.Module):
    """The decoder. Methods: `__call__` (hidden states), `layer_means`, `loss`, `logits`,
    `prefill`, `decode`.

    Parameters are those of `init`, their layers stacked, or as `hold` of params.py makes them, or
    as training freezes a part of them (trainable.py). With an `adapter` some of the layers'
    matrices are Adapted.
    """

    config: LlamaConfig
    execution: Execution = Execution()
    parallel: Parallelism = Parallelism()
    adapter: Adapter | None = None

    def setup(self):
        config = self.config
        self.layers = self._stack(config.n_layers)
        shared = (config, self.execution, self.parallel)
        self.embed = Table(*shared, "embedding", ("vocab_rows", "embed"))
        self.norm = RMSNorm(*shared)
        if not config.tied:
            self.head = Table(*shared, "kernel", ("embed", "vocab"))

    def _stack(self, layers: int, **options):
        """The module of so many neighbouring layers, their parameters stacked."""
        execution, block = self.execution, Block
        if execution.remat != "none":
            policy = REMAT_POLICIES[execution.remat]
            block = nn.remat(block, policy=policy, prevent_cse=False, static_argnums=(5, 6))
        return nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, *(nn.broadcast,) * 5),  # pyright: ignore[reportArgumentType]
            length=layers,
            unroll=1 if execution.scan_layers else layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(self.config, execution, self.parallel, self.adapter, **options)

    def __call__(self, tokens, positions, segment_ids, noise=None):
        """Final hidden states of packed rows.

        Args:
          tokens, positions, segment_ids: [B, T] int32; segment 0 is padding.
          noise: keys [B] for the adapter's dropout, one a row.

        Returns:
          [B, T, D] in the compute dtype, after the last norm.
        """
        config, execution = self.config, self.execution
        kernel = packed_kernel(
            execution.attention, self.parallel.platform, tokens.shape[1], config.head_size,
            execution.dtype,
        )  # fmt: skip
        if kernel in ("splash", "blocked"):
            mask = segment_ids
        else:
            mask = packed_mask(segment_ids, config.sliding_window)
        return self._forward(tokens, positions, mask, kernel, noise=noise)[0]

    def loss(self, tokens, positions, segment_ids, targets, noise=None):
        """Cross entropy of each target in nats, [B, T] f32; logits are never whole in memory."""
        hidden = self(tokens, positions, segment_ids, noise)
        return cross_entropy(
            hidden, self._head_kernel(), targets, self.config.vocab_size, self.parallel
        )

    def logits(self, tokens, positions, segment_ids):
        """Next-token logits [B, T, V padded] f32; -1e30 where the vocabulary is padding.

        In a shard_map over tensor the last axis is local.
        """
        return self._logits(self(tokens, positions, segment_ids))

    def logits_at(self, tokens, positions, segment_ids, columns):
        """As `logits` after the tokens at these columns of each row alone.

        Args:
          columns: [B, C] int32.

        Returns:
          [B, C, V padded] f32.
        """
        hidden = self(tokens, positions, segment_ids)
        return self._logits(jnp.take_along_axis(hidden, columns[:, :, None], axis=1))

    def prefill(self, tokens, lengths, before=None):
        """Reads right-padded prompts, or their parts behind what is in `before`.

        Args:
          tokens: [B, T] int32, read as the last id where they lie behind it (a draft may have fewer
            than the model it drafts for); lengths: [B] int32, at least 1.
          before: keys and values of the S' tokens in front of each row, in the form of the second
            result.

        Returns:
          the logits [B, V] f32 after each row's last token, and its keys and values, a pair of
          [L, B, T, K, H]; where the layers of the parameters are apart, a tuple with a pair of
          [B, T, K, H] a layer.
        """
        index, real = _right_padded(tokens, lengths)
        start = 0 if before is None else jax.tree.leaves(before)[0].shape[-3]
        seen = packed_mask(real.astype(jnp.int32), self.config.sliding_window)
        if start:
            earlier = cache_mask(start + index, start, self.config.sliding_window)
            seen = jnp.concatenate([earlier, seen], axis=-1)
        tokens = self._known(tokens)
        hidden, _, kv = self._forward(tokens, start + index, seen, before=before, keep=_keep_kv)
        last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)
        return self._logits(last)[:, 0], kv

    def layer_means(self, tokens, lengths):
        """Means of the hidden states over the real tokens of right-padded rows.

        Of each layer only the means are kept, never the states of all layers.

        Args:
          tokens: [B, T] int32; lengths: [B] int32, at least 1.

        Returns:
          [L + 1, B, D] f32, summed in f32: of the embeddings, of the output of every block but
          the last, and of what the last norm makes of the last block's output
          (`output_hidden_states` of transformers).
        """
        index, real = _right_padded(tokens, lengths)

        def mean(x, kv=None):
            x = jnp.where(real[..., None], x.astype(jnp.float32), 0.0)
            return x.sum(axis=1) / lengths[:, None]

        mask = packed_mask(real.astype(jnp.int32), self.config.sliding_window)
        hidden, _, means = self._forward(tokens, index, mask, keep=mean)
        assert isinstance(means, jax.Array), "layers are one stack"
        first, last = mean(self._embed(tokens)), mean(hidden)
        return jnp.concatenate([first[None], means[:-1], last[None]])

    def decode(self, tokens, positions, cache, room=None):
        """Reads T new tokens a row against a cache.

        Args:
          tokens, positions: [B, T] int32; tokens as in `prefill`.
          cache: as `empty_cache`, apart where the layers of the parameters are. The tokens' keys
            and values are written at `positions`, dropped where those are S or more.
          room: how many of the cache's first positions are read, all by default; the rows whose
            positions lie behind them give meaningless logits.

        Returns:
          the logits [B, T, V] f32 after each token, and the cache.
        """
        room = room or cache_length(self.config, cache)
        mask = cache_mask(positions, room, self.config.sliding_window)
        hidden, cache, _ = self._forward(self._known(tokens), positions, mask, cache=cache)
        return self._logits(hidden), cache

    def _forward(
        self, tokens, positions, mask, kernel="plain", cache=None, before=None, keep=_keep_nothing,
        noise=None,
    ):  # fmt: skip
        x = self._embed(self.parallel.seq_shard(tokens))
        layers = self.get_variable("params", "layers")
        if not isinstance(layers, tuple):
            carry = (x, cache, jnp.int32(0))
            (x, cache, _), kept = self.layers(carry, before, positions, mask, keep, kernel, noise)
        elif is_stack(layers[0]):
            carry = (x, None, jnp.int32(0))
            for weights in layers:
                stack = self._stack(len(weights["mlp_norm"]["scale"]), parent=None)
                carry, _ = stack.apply(
                    {"params": weights}, carry, None, positions, mask, keep, kernel, noise
                )
            x, kept = carry[0], None
        else:
            block = Block(self.config, self.execution, self.parallel, self.adapter, parent=None)
            caches, kept = [], []
            for number, weights in enumerate(layers):
                own, front = (each and each[number] for each in (cache, before))
                (x, own, _), one = block.apply(
                    {"params": weights}, (x, own, None), front, positions, mask, keep, kernel, None
                )
                caches.append(own)
                kept.append(one)
            cache, kept = tuple(caches), tuple(kept)
        return self.parallel.gather_length(self.norm(x)), cache, kept

    def _known(self, tokens):
        return jnp.minimum(tokens, self.config.vocab_size - 1)

    def _embed(self, tokens):
        return jnp.take(self.embed(), tokens, axis=0).astype(jnp.dtype(self.execution.dtype))

    def _head_kernel(self):
        """The head [D, V], V local to the tensor shard."""
        if not self.config.tied:
            return self.head()
        parts = self.parallel.local(self.config.padded_vocab, "vocab")
        first = self.parallel.tensor_index() * parts
        rows = jax.lax.dynamic_slice_in_dim(self.embed(), first, parts)
        return rows.T.astype(jnp.dtype(self.execution.dtype))

    def _logits(self, hidden):
        kernel = self._head_kernel()
        logits = jnp.einsum("btd,dv->btv", hidden, kernel, preferred_element_type=jnp.float32)
        index = self.parallel.tensor_index() * kernel.shape[1] + jnp.arange(kernel.shape[1])
        return jnp.where(index < self.config.vocab_size, logits, -1e30)


class Table(nn.Module):
    """The embedding [V, D] or the head [D, V], read as a whole weight."""

    config: LlamaConfig
    execution: Execution
    parallel: Parallelism
    weight: str
    axes: tuple[str, str]

    @nn.compact
    def __call__(self):
        sizes = {"embed": self.config.d_model}
        shape = tuple(sizes.get(axis, self.config.padded_vocab) for axis in self.axes)
        return parameter(self, self.weight, shape, self.axes, self.config.init_scale)


def _right_padded(tokens, lengths):
    """The positions [B, T] of right-padded rows, and which of them are real, [B, T] bool."""
    index = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return index, index < lengths[:, None]


def is_stack(layers) -> bool:
    """Whether the parameters are those of a stack of layers, and not of one."""
    return layers["mlp_norm"]["scale"].ndim == 2
