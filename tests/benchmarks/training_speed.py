"""Training on a CPU against transformers with torch: the whole step, attention, head and loss.

    python -m tests.benchmarks.training_speed
    python -m tests.benchmarks.training_speed --rank=16    # adapters alone, against PEFT

A LLaMA of 34 million parameters in float32, the same weights and rows on both sides; torch has
sdpa and the fused AdamW, and as many threads as XLA. Both sides take turns, and each ratio is
of one turn of each, so that other load on the machine falls on both. Ratios over 1 are ours.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import peft
import torch
from absl import app, flags

from qalign_jax.checkpoints import lora
from qalign_jax.models.adapter import Adapter
from qalign_jax.models.attention import attend, packed_mask
from qalign_jax.models.blocked_attention import blocked_attend
from qalign_jax.models.config import Execution, LlamaConfig
from qalign_jax.models.cross_entropy import cross_entropy
from qalign_jax.models.llama import Llama
from qalign_jax.models.params import hold_and_free, random_params
from qalign_jax.models.trainable import WHOLE, Trainable, new_adapter
from qalign_jax.parallel.mesh import Parallelism, make_mesh
from qalign_jax.training.optimizer import OptimizerConfig
from qalign_jax.training.step import init_state, make_train_step
from tests.reference import to_transformers

ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each side, after one that is not counted.")
RANK = flags.DEFINE_integer("rank", 0, "Trains adapters of this rank; 0 trains all weights.")
ATTENTION = flags.DEFINE_string("attention", "auto", "Ours in the whole step.")

ROWS, LENGTH, RATE = 8, 512, 1e-4
CONFIG = LlamaConfig(
    vocab_size=8192, d_model=512, n_layers=8, n_heads=8, n_kv_heads=8, d_ff=1376, head_size=64
)


def make_batch(lengths: list[list[int]]) -> dict[str, np.ndarray]:
    """Rows of random documents of these lengths; a document's last token has no target."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, CONFIG.vocab_size, (len(lengths), LENGTH)).astype(np.int32)
    positions, segment_ids = np.zeros_like(tokens), np.zeros_like(tokens)
    loss_weights = np.zeros(tokens.shape, np.float32)
    for row, documents in enumerate(lengths):
        start = 0
        for number, length in enumerate(documents, 1):
            end = start + length
            positions[row, start:end] = np.arange(length)
            segment_ids[row, start:end] = number
            loss_weights[row, start : end - 1] = 1
            start = end
    return {
        "tokens": tokens,
        "positions": positions,
        "segment_ids": segment_ids,
        "targets": np.roll(tokens, -1, axis=1),
        "loss_weights": loss_weights,
    }


def pack(lengths) -> list[list[int]]:
    """ROWS rows, filled in order."""
    rows = [[]]
    for length in lengths:
        if sum(rows[-1]) + length > LENGTH:
            rows.append([])
        rows[-1].append(length)
    return rows[:ROWS]


def make_jax_step(batch) -> Callable[[], float]:
    """A function that trains one step and returns the loss."""
    mesh, optimizer = make_mesh("single"), OptimizerConfig()
    execution = Execution("float32", "none", ATTENTION.value, scan_layers=False)
    params, trainable, frozen = random_params(CONFIG, mesh, 0), WHOLE, None
    if RANK.value:
        trainable = Trainable(Adapter(RANK.value))
        frozen = hold_and_free(CONFIG, params, "float32", mesh)
        params = new_adapter(CONFIG, Adapter(RANK.value), mesh, 0)
    state = init_state(CONFIG, optimizer, mesh, params, trainable, frozen)
    step = make_train_step(Llama(CONFIG, execution), optimizer, mesh, trainable=trainable)
    batch = jax.device_put(batch)

    def train() -> float:
        nonlocal state
        state, metrics = step(state, batch, np.float32(RATE))
        return float(metrics["loss"])

    return train


def make_torch_step(batch) -> Callable[[], float]:
    """As `make_jax_step`, of rows with one document each."""
    params = random_params(CONFIG, make_mesh("single"), 0)
    model = to_transformers(CONFIG, jax.tree.map(np.asarray, params))
    model.set_attn_implementation("sdpa")
    if RANK.value:
        adapter = Adapter(RANK.value)
        with tempfile.TemporaryDirectory() as folder:
            lora.write(folder, adapter, new_adapter(CONFIG, adapter, make_mesh("single"), 0), "")
            model = peft.PeftModel.from_pretrained(model, folder, is_trainable=True)
    model.train()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0, fused=True)
    tokens = torch.from_numpy(batch["tokens"].astype(np.int64))
    real = torch.from_numpy(batch["segment_ids"] > 0)
    inputs = {"input_ids": tokens, "labels": tokens.masked_fill(~real, -100)}
    if not real.all():
        inputs["attention_mask"] = real.long()

    def train() -> float:
        optimizer.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        return loss.item()

    return train


def make_attention(kind: str) -> Callable[[], object]:
    """A function that runs causal attention forwards and backwards, ours or torch's sdpa."""
    rng = np.random.default_rng(0)
    shape = (ROWS, LENGTH, CONFIG.n_heads, CONFIG.head_size)
    q, k, v, gradient = (rng.normal(size=shape).astype(np.float32) for _ in range(4))
    segments = jnp.ones((ROWS, LENGTH), jnp.int32)

    def ours(q, k, v):
        if kind == "blocked":
            return blocked_attend(q, k, v, segments, 0)
        return attend(q, k.swapaxes(1, 2), v.swapaxes(1, 2), packed_mask(segments, 0))

    if kind != "torch":
        gradients = jax.jit(lambda q, k, v, gradient: jax.vjp(ours, q, k, v)[1](gradient))
        arrays = [jnp.asarray(array) for array in (q, k, v, gradient)]
        return lambda: jax.block_until_ready(gradients(*arrays))

    tensors = [torch.from_numpy(array).transpose(1, 2) for array in (q, k, v, gradient)]
    for tensor in tensors[:3]:
        tensor.requires_grad_()

    def run():
        q, k, v, gradient = tensors
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return torch.autograd.grad(out, (q, k, v), gradient)

    return run


def make_head(kind: str) -> Callable[[], object]:
    """A function that runs the head and the loss forwards and backwards, ours or torch's."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(ROWS, LENGTH, CONFIG.d_model)).astype(np.float32)
    kernel = rng.normal(size=(CONFIG.d_model, CONFIG.vocab_size)).astype(np.float32) * 0.02
    targets = rng.integers(0, CONFIG.vocab_size, (ROWS, LENGTH)).astype(np.int32)

    if kind == "ours":

        def loss(hidden, kernel):
            nll = cross_entropy(hidden, kernel, targets, CONFIG.vocab_size, Parallelism())
            return nll.mean()

        gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))
        arrays = (jnp.asarray(hidden), jnp.asarray(kernel))
        return lambda: jax.block_until_ready(gradients(*arrays))

    inputs = [torch.from_numpy(a).requires_grad_() for a in (hidden, kernel.T.copy())]
    wanted = torch.from_numpy(targets.astype(np.int64)).flatten()

    def run():
        logits = torch.nn.functional.linear(*inputs).flatten(0, 1)
        return torch.autograd.grad(torch.nn.functional.cross_entropy(logits, wanted), inputs)

    return run


def compare(what: str, unit: str, ours, theirs, sizes: tuple[float, float]) -> None:
    """Prints a row of the table: what each side does a second, and the ratios of the rounds.

    Args:
      ours, theirs: functions to time; what they return first is compared where it is a loss.
      sizes: what one call of each does, in units.
    """
    first = ours(), theirs()
    if isinstance(first[1], float) and sizes[0] == sizes[1]:
        np.testing.assert_allclose(*first, rtol=1e-4)
    speeds = []
    for _ in range(ROUNDS.value):
        pair = []
        for function, size in zip((ours, theirs), sizes, strict=True):
            began = time.perf_counter()
            function()
            pair.append(size / (time.perf_counter() - began))
        speeds.append(pair)
    ours_speed, theirs_speed = zip(*speeds, strict=True)
    ratios = [a / b for a, b in speeds]
    cells = (describe(ours_speed, 0), describe(theirs_speed, 0), describe(ratios, 2))
    print(f"| {what}, {unit}/s | {' | '.join(cells)} |", flush=True)


def describe(values, digits: int) -> str:
    """The median and the range."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def main(_) -> None:
    torch.set_num_threads(os.cpu_count() or 1)
    print(
        f"{CONFIG.num_parameters:,} parameters, rows of {LENGTH}, {torch.get_num_threads()} cores"
    )
    print("| | ours | torch | ratio |\n|---|---|---|---|")
    rng = np.random.default_rng(1)
    lengths = rng.integers(64, 360, 100).tolist()
    full = make_batch([[LENGTH]] * ROWS)
    padded = make_batch([[length] for length in lengths[:ROWS]])
    packed = make_batch(pack(lengths))
    tokens = {id(rows): int((rows["segment_ids"] > 0).sum()) for rows in (full, padded, packed)}
    for what, ours, theirs in (
        ("step, full rows", full, full),
        ("step, a padded document a row", padded, padded),
        ("step, ours packed, torch's padded", packed, padded),
    ):
        sizes = (tokens[id(ours)], tokens[id(theirs)])
        compare(what, "tokens", make_jax_step(ours), make_torch_step(theirs), sizes)
    if RANK.value:
        return
    calls = ROWS * LENGTH
    for kind in ("blocked", "plain"):
        what = f"attention, {kind} against sdpa"
        compare(what, "tokens", make_attention(kind), make_attention("torch"), (calls, calls))
    compare("head and loss", "tokens", make_head("ours"), make_head("torch"), (calls, calls))


if __name__ == "__main__":
    app.run(main)
