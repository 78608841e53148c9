"""LLaMA in flax linen: one functional module for training, prefill and decoding.

Shape letters: B batch, T query length, S key length, D model, F feed-forward, N query heads,
K key-value heads, G = N/K, H head size, V vocabulary (padded), L layers.

The same file runs inside a shard_map, where weights are local and gathered by hand, and in
automatic mode, where the partitioner does it: the module asks its `Parallelism`.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import meta
from jax.ad_checkpoint import checkpoint_name

from qalign_jax.models.attention import (
    RopeScaling,
    attend,
    cache_mask,
    cudnn_attend,
    packed_mask,
    rope_frequencies,
    rotate,
    splash_attend,
    takes_cudnn,
    takes_splash,
)
from qalign_jax.models.cache import cache_axes, layer_of, write_cache
from qalign_jax.models.cross_entropy import cross_entropy
from qalign_jax.parallel.mesh import Parallelism, spec_of

# The vocabulary's rows are padded to a multiple of this, so that one checkpoint fits every mesh.
VOCAB_MULTIPLE = 128

# What the backward pass finds saved, by name; everything else is computed again. "qkvo" are
# queries, keys, values, what attention makes of them, and its output projection.
REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "qkvo": jax.checkpoint_policies.save_only_these_names("qkvo"),
    "qkvo_mlp": jax.checkpoint_policies.save_only_these_names("qkvo", "mlp"),
    "none": None,
}


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Everything that shapes the model. `dtype` is of the arithmetic, not of the parameters."""

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_ff: int
    head_size: int
    max_length: int = 4096
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    sliding_window: int = 0  # tokens back, itself included; 0 sees all
    tied: bool = False  # the head is the embedding
    init_scale: float = 0.02
    dtype: str = "bfloat16"
    remat: str = "full"
    attention: str = "auto"  # of packed rows: plain, splash, or what suits the device
    scan_layers: bool = True  # False unrolls: XLA on CPU runs a loop's body on one core

    @property
    def padded_vocab(self) -> int:
        return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    @property
    def num_parameters(self) -> int:
        """Parameters of the model as published, padding of the vocabulary left out."""
        attention = self.d_model * self.head_size * 2 * (self.n_heads + self.n_kv_heads)
        layer = attention + 3 * self.d_model * self.d_ff + 2 * self.d_model
        tables = self.vocab_size * self.d_model * (1 if self.tied else 2)
        return self.n_layers * layer + tables + self.d_model

    def flops_per_token(self, length: int, training: bool = True) -> float:
        """Matrix-product FLOPs a token at this row length; causal attention counts half.

        The lookup of the embedding is none. Training is three times the forward pass
        (recomputation is not counted, as MFU is defined in PaLM, appendix B).
        """
        tables = self.vocab_size * self.d_model
        matrices = self.num_parameters - tables * (1 if self.tied else 2) + tables
        attention = self.n_layers * self.n_heads * self.head_size * length
        forward = 2 * matrices + 2 * attention
        return forward * (3 if training else 1)

    def recomputed_flops_per_token(self, length: int) -> float:
        """FLOPs a token that the backward pass computes again under the config's remat policy."""
        if self.remat == "none":
            return 0.0
        again = 0
        if self.remat in ("full", "qkvo"):
            again += 4 * self.d_model * self.d_ff  # gate and up
        if self.remat == "full":
            heads = 2 * (self.n_heads + self.n_kv_heads)  # the four projections
            again += 2 * self.d_model * self.head_size * heads
            again += 2 * self.n_heads * self.head_size * length  # causal attention
        return self.n_layers * again


def parameter(module, name: str, shape, axes, scale: float | None) -> jax.Array:
    """Declares a parameter: global shape, logical axes, and initial standard deviation at once.

    `scale` None initialises with ones (norms). Returns the weight in the module's dtype with the
    axes that are split over fsdp gathered; over tensor it stays local.
    """
    parallel, config = module.parallel, module.config
    init = nn.initializers.ones if scale is None else nn.initializers.normal(scale)
    local = tuple(parallel.local(length, axis) for length, axis in zip(shape, axes))
    value = module.param(name, nn.with_logical_partitioning(init, axes), local, jnp.float32)
    return parallel.gather(value.astype(_arithmetic_dtype(config, name)), axes)


class RMSNorm(nn.Module):
    config: LlamaConfig
    parallel: Parallelism

    @nn.compact
    def __call__(self, x):
        scale = parameter(self, "scale", (self.config.d_model,), ("norm",), None)
        wide = x.astype(jnp.float32)
        wide *= jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.config.norm_eps)
        return (wide * scale).astype(x.dtype)


class Attention(nn.Module):
    config: LlamaConfig
    parallel: Parallelism

    @nn.compact
    def __call__(self, x, positions, mask, cache, layer):
        """Attends among x's own tokens, or, with a cache, to the cache they are written to first.

        The mask is [B, T, S] bool, or the segment ids [B, T] where splash makes its own of them.

        Returns the output [B, T, D], the cache, and the keys and values [B, T, K, H] of x.
        """
        config, scale = self.config, self.config.init_scale
        queries = (config.d_model, config.n_heads, config.head_size)
        keys = (config.d_model, config.n_kv_heads, config.head_size)
        wq = parameter(self, "query", queries, ("embed", "heads", "head_size"), scale)
        wk = parameter(self, "key", keys, ("embed", "kv_heads", "head_size"), scale)
        wv = parameter(self, "value", keys, ("embed", "kv_heads", "head_size"), scale)
        output = (config.n_heads, config.head_size, config.d_model)
        wo = parameter(self, "out", output, ("heads", "head_size", "embed"), scale)

        x = self.parallel.gather_length(x)
        frequencies = rope_frequencies(config.head_size, config.rope_theta, config.rope_scaling)
        splash = cache is None and mask.ndim == 2
        scale = config.head_size**-0.5 if splash else 1.0
        q = rotate(jnp.einsum("btd,dnh->btnh", x, wq), positions, frequencies, scale)
        k = rotate(jnp.einsum("btd,dkh->btkh", x, wk), positions, frequencies)
        v = jnp.einsum("btd,dkh->btkh", x, wv)
        q, k, v = (checkpoint_name(a, "qkvo") for a in (q, k, v))
        if cache is not None:
            cache = write_cache(config, cache, layer, positions, k, v)
            out = attend(q, *(layer_of(config, whole, layer) for whole in cache), mask)
        elif splash:
            interpret = self.parallel.platform != "tpu"
            out = splash_attend(q, k, v, mask, config.sliding_window, interpret)
        elif takes_cudnn(config.attention, self.parallel.platform, q.dtype, config.head_size):
            out = checkpoint_name(cudnn_attend(q, k, v, mask), "qkvo")
        else:
            out = checkpoint_name(attend(q, k.swapaxes(1, 2), v.swapaxes(1, 2), mask), "qkvo")
        out = self.parallel.scatter_length(jnp.einsum("btnh,nhd->btd", out, wo))
        out = checkpoint_name(out, "qkvo")
        return out, cache, (k, v)


class FeedForward(nn.Module):
    config: LlamaConfig
    parallel: Parallelism

    @nn.compact
    def __call__(self, x):
        config, scale = self.config, self.config.init_scale
        shape = (config.d_model, config.d_ff)
        gate = parameter(self, "gate", shape, ("embed", "mlp"), scale)
        up = parameter(self, "up", shape, ("embed", "mlp"), scale)
        down = parameter(self, "down", shape[::-1], ("mlp", "embed"), scale)
        x = self.parallel.gather_length(x)
        gated = checkpoint_name(jnp.einsum("btd,df->btf", x, gate), "mlp")
        plain = checkpoint_name(jnp.einsum("btd,df->btf", x, up), "mlp")
        out = jnp.einsum("btf,fd->btd", jax.nn.silu(gated) * plain, down)
        return self.parallel.scatter_length(out)


class Block(nn.Module):
    """One layer, shaped for nn.scan: the carry is (x, cache, layer number)."""

    config: LlamaConfig
    parallel: Parallelism

    @nn.compact
    def __call__(self, carry, positions, mask, keep_kv):
        x, cache, layer = carry
        norm = functools.partial(RMSNorm, self.config, self.parallel)
        out, cache, kv = Attention(self.config, self.parallel, name="attention")(
            norm(name="attention_norm")(x), positions, mask, cache, layer
        )
        x = x + out
        x = x + FeedForward(self.config, self.parallel, name="mlp")(norm(name="mlp_norm")(x))
        return (x, cache, layer + 1), kv if keep_kv else None


class Llama(nn.Module):
    """The decoder. Methods: `__call__` (hidden states), `loss`, `logits`, `prefill`, `decode`."""

    config: LlamaConfig
    parallel: Parallelism = Parallelism()

    def setup(self):
        config = self.config
        block = Block
        if config.remat != "none":
            policy = REMAT_POLICIES[config.remat]
            block = nn.remat(block, policy=policy, prevent_cse=False, static_argnums=(4,))
        self.layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast, nn.broadcast),
            length=config.n_layers,
            unroll=1 if config.scan_layers else config.n_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(config, self.parallel)
        self.embed = Table(config, self.parallel, "embedding", ("vocab_rows", "embed"))
        self.norm = RMSNorm(config, self.parallel)
        if not config.tied:
            self.head = Table(config, self.parallel, "kernel", ("embed", "vocab"))

    def __call__(self, tokens, positions, segment_ids):
        """Final hidden states of packed rows.

        Args:
          tokens, positions, segment_ids: [B, T] int32; segment 0 is padding.

        Returns:
          [B, T, D] in the config's dtype, after the last norm.
        """
        config, length = self.config, tokens.shape[1]
        # parameters are declared by a row of one token, which no kernel tiles
        if not self.is_initializing() and takes_splash(
            config.attention, self.parallel.platform, length, config.head_size
        ):
            mask = segment_ids
        else:
            mask = packed_mask(segment_ids, config.sliding_window)
        return self._forward(tokens, positions, mask)[0]

    def loss(self, tokens, positions, segment_ids, targets):
        """Cross entropy of each target in nats, [B, T] f32; logits are never whole in memory."""
        hidden = self(tokens, positions, segment_ids)
        return cross_entropy(
            hidden, self._head_kernel(), targets, self.config.vocab_size, self.parallel
        )

    def logits(self, tokens, positions, segment_ids):
        """Next-token logits [B, T, V padded] f32; -1e30 where the vocabulary is padding.

        In a shard_map over tensor the last axis is local.
        """
        return self._logits(self(tokens, positions, segment_ids))

    def prefill(self, tokens, lengths):
        """Reads right-padded prompts.

        Args:
          tokens: [B, T] int32; lengths: [B] int32, at least 1.

        Returns:
          the logits [B, V] f32 after each prompt's last token, and the keys and values,
          a pair of [L, B, T, K, H].
        """
        index = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        real = (index < lengths[:, None]).astype(jnp.int32)
        mask = packed_mask(real, self.config.sliding_window)
        hidden, _, kv = self._forward(tokens, index, mask, keep_kv=True)
        last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)
        return self._logits(last)[:, 0], kv

    def decode(self, tokens, positions, cache):
        """Reads one token a row against a cache.

        Args:
          tokens, positions: [B] int32; cache: as `empty_cache`. The token's key and value
            are written at `positions`, dropped where that is S or more.

        Returns:
          the logits [B, V] f32 after the token, and the cache.
        """
        positions = positions[:, None]
        length = cache[0].shape[cache_axes(self.config).index("length")]
        mask = cache_mask(positions, length, self.config.sliding_window)
        hidden, cache, _ = self._forward(tokens[:, None], positions, mask, cache)
        return self._logits(hidden)[:, 0], cache

    def _forward(self, tokens, positions, mask, cache=None, keep_kv=False):
        tokens = self.parallel.own_length(tokens)
        x = jnp.take(self.embed(), tokens, axis=0).astype(jnp.dtype(self.config.dtype))
        carry = (x, cache, jnp.int32(0))
        (x, cache, _), kv = self.layers(carry, positions, mask, keep_kv)
        return self.parallel.gather_length(self.norm(x)), cache, kv

    def _head_kernel(self):
        """The head [D, V], V local to the tensor shard."""
        if not self.config.tied:
            return self.head()
        parts = self.parallel.local(self.config.padded_vocab, "vocab")
        first = self.parallel.tensor_index() * parts
        rows = jax.lax.dynamic_slice_in_dim(self.embed(), first, parts)
        return rows.T.astype(jnp.dtype(self.config.dtype))

    def _logits(self, hidden):
        kernel = self._head_kernel()
        logits = jnp.einsum("btd,dv->btv", hidden, kernel, preferred_element_type=jnp.float32)
        index = self.parallel.tensor_index() * kernel.shape[1] + jnp.arange(kernel.shape[1])
        return jnp.where(index < self.config.vocab_size, logits, -1e30)


class Table(nn.Module):
    """The embedding [V, D] or the head [D, V], read as a whole weight."""

    config: LlamaConfig
    parallel: Parallelism
    weight: str
    axes: tuple[str, str]

    @nn.compact
    def __call__(self):
        sizes = {"embed": self.config.d_model}
        shape = tuple(sizes.get(axis, self.config.padded_vocab) for axis in self.axes)
        return parameter(self, self.weight, shape, self.axes, self.config.init_scale)


def arithmetic_params(config: LlamaConfig, params):
    """The parameters in the dtype that the arithmetic reads them in; it then casts no more."""

    def cast(path, leaf):
        return leaf.astype(_arithmetic_dtype(config, path[-1].key))

    return jax.tree_util.tree_map_with_path(cast, params)


def _arithmetic_dtype(config: LlamaConfig, name: str):
    return jnp.float32 if name in ("scale", "embedding") else jnp.dtype(config.dtype)


@functools.partial(jax.jit, static_argnums=0)
def init_params(config: LlamaConfig, key: jax.Array):
    """Random parameters, f32, in a plain nested dict; the same on every mesh."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    variables = Llama(config).init(key, tokens, tokens, tokens, tokens, method="loss")
    return meta.unbox(variables["params"])


@functools.lru_cache
def abstract_params(config: LlamaConfig):
    """The parameters' shapes and dtypes, and their logical axes, as two trees of one structure."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    boxed = jax.eval_shape(
        lambda: Llama(config).init(jax.random.key(0), tokens, tokens, tokens, tokens, method="loss")
    )["params"]
    axes = jax.tree.map(
        lambda box: tuple(box.names), boxed, is_leaf=lambda x: isinstance(x, meta.AxisMetadata)
    )
    return meta.unbox(boxed), axes


def param_specs(config: LlamaConfig):
    """The PartitionSpec of every parameter."""
    axes = abstract_params(config)[1]
    return jax.tree.map(spec_of, axes, is_leaf=lambda x: isinstance(x, tuple))
