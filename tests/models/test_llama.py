"""The model against transformers, torch, float32, with the same random weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from qalign_jax.models.cache import empty_cache, write_prompts
from qalign_jax.models.config import RopeScaling
from qalign_jax.models.llama import Llama
from qalign_jax.models.params import init_params
from qalign_jax.models.presets import PRESETS, preset
from tests.reference import to_transformers

SMALL, F32 = preset("tiny", vocab_size=300, init_scale=0.1)
VARIANTS = {
    "multi_head": dataclasses.replace(SMALL, n_kv_heads=4),
    "grouped_query": SMALL,
    "sliding_window": dataclasses.replace(SMALL, sliding_window=5),
    "llama3_scaled": dataclasses.replace(
        SMALL,
        rope_theta=500_000.0,
        rope_scaling=RopeScaling("llama3", 8.0, original_max_length=16),
    ),
    "linear_scaled": dataclasses.replace(SMALL, rope_scaling=RopeScaling("linear", 4.0)),
    "tied": dataclasses.replace(SMALL, tied=True),
}
LENGTHS = (24, 9)


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request):
    """A config, its parameters, and the reference model that holds them."""
    config = VARIANTS[request.param]
    params = init_params(config, jax.random.key(7))
    return config, params, to_transformers(config, params)


@pytest.fixture(scope="module")
def rows():
    return np.random.default_rng(0).integers(0, 300, (2, 24)).astype(np.int32)


def reference_logits(model, tokens):
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(tokens[None].astype(np.int64))).logits[0].numpy()


def ours(config, params, tokens, positions, segment_ids, execution=F32):
    logits = Llama(config, execution).apply(
        {"params": params}, tokens, positions, segment_ids, method="logits"
    )
    return np.asarray(logits)


def test_logits_of_right_padded_rows_equal_transformers(variant, rows):
    config, params, model = variant
    index = np.broadcast_to(np.arange(24), rows.shape)
    real = (index < np.array(LENGTHS)[:, None]).astype(np.int32)
    logits = ours(config, params, rows, index, real)
    for row, length in enumerate(LENGTHS):
        expected = reference_logits(model, rows[row, :length])
        np.testing.assert_allclose(logits[row, :length, :300], expected, atol=1e-4)


def test_logits_of_packed_documents_equal_each_document_alone(variant, rows):
    config, params, model = variant
    documents = [rows[0, :7], rows[0, 7:18], rows[1, :4]]
    tokens = np.zeros((1, 24), np.int32)
    positions, segments = np.zeros_like(tokens), np.zeros_like(tokens)
    start = 0
    for number, document in enumerate(documents, 1):
        end = start + len(document)
        tokens[0, start:end] = document
        positions[0, start:end] = np.arange(len(document))
        segments[0, start:end] = number
        start = end
    logits = ours(config, params, tokens, positions, segments)[0, :, :300]
    expected = np.concatenate([reference_logits(model, document) for document in documents])
    np.testing.assert_allclose(logits[: len(expected)], expected, atol=1e-4)


def test_prefill_and_decode_steps_continue_as_the_whole_row_does(variant, rows):
    config, params, _ = variant
    index = np.broadcast_to(np.arange(24), rows.shape)
    whole = ours(config, params, rows, index, np.ones_like(rows))
    apply = jax.jit(Llama(config, F32).apply, static_argnames="method")
    lengths = np.array([8, 5])
    logits, kv = apply({"params": params}, rows[:, :8], lengths, method="prefill")
    np.testing.assert_allclose(logits, whole[[0, 1], lengths - 1], atol=1e-5)
    cache = empty_cache(config, "float32", 2, 24, apart=False)
    cache = write_prompts(config, cache, np.arange(2), 0, kv)
    for _ in range(10):
        tokens = rows[[0, 1], lengths]
        logits, cache = apply(
            {"params": params}, tokens[:, None], lengths[:, None], cache, method="decode"
        )
        np.testing.assert_allclose(logits[:, 0], whole[[0, 1], lengths], atol=1e-5)
        lengths = lengths + 1


def test_layer_means_are_those_of_transformers_over_the_real_tokens(variant, rows):
    config, params, model = variant
    execution = dataclasses.replace(F32, remat="full")
    apply = jax.jit(Llama(config, execution).apply, static_argnames="method")
    means = apply({"params": params}, rows, np.array(LENGTHS), method="layer_means")
    assert means.shape == (config.n_layers + 1, 2, config.d_model) and means.dtype == jnp.float32
    for row, length in enumerate(LENGTHS):
        with torch.no_grad():
            ids = torch.from_numpy(rows[row : row + 1, :length].astype(np.int64))
            states = model(input_ids=ids, output_hidden_states=True).hidden_states
        expected = np.stack([state[0].mean(axis=0).numpy() for state in states])
        np.testing.assert_allclose(means[:, row], expected, atol=1e-4)


def test_layer_means_of_a_loop_and_of_an_unrolled_model_are_equal(rows):
    params = init_params(SMALL, jax.random.key(7))

    def means(**changes):
        model = Llama(SMALL, dataclasses.replace(F32, **changes))
        return model.apply({"params": params}, rows, np.array(LENGTHS), method="layer_means")

    np.testing.assert_allclose(means(scan_layers=True), means(scan_layers=False), atol=1e-6)


def test_several_tokens_decoded_at_once_have_the_logits_of_the_whole_row(variant, rows):
    config, params, _ = variant
    index = np.broadcast_to(np.arange(24), rows.shape)
    whole = ours(config, params, rows, index, np.ones_like(rows))
    apply = jax.jit(Llama(config, F32).apply, static_argnames="method")
    lengths = np.array([8, 5])
    _, kv = apply({"params": params}, rows[:, :8], lengths, method="prefill")
    cache = write_prompts(
        config, empty_cache(config, "float32", 2, 24, apart=False), np.arange(2), 0, kv
    )
    for _ in range(3):
        positions = lengths[:, None] + np.arange(4)
        tokens = np.take_along_axis(rows, positions, axis=1)
        logits, cache = apply({"params": params}, tokens, positions, cache, method="decode")
        expected = np.take_along_axis(whole, positions[:, :, None], axis=1)
        np.testing.assert_allclose(logits, expected, atol=1e-5)
        lengths = lengths + 4


def test_loss_is_the_cross_entropy_of_the_logits(variant, rows):
    config, params, _ = variant
    index = np.broadcast_to(np.arange(24), rows.shape)
    targets = np.roll(rows, -1, axis=1)
    inputs = (rows, index, np.ones_like(rows))
    loss = Llama(config, F32).apply({"params": params}, *inputs, targets, method="loss")
    logits = torch.from_numpy(np.array(ours(config, params, *inputs))[..., :300])
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.from_numpy(targets.astype(np.int64)).flatten(), reduction="none"
    )
    np.testing.assert_allclose(np.asarray(loss).ravel(), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("remat", ["none", "full", "qkvo", "qkvo_mlp"])
def test_every_remat_policy_gives_the_same_gradient(remat, rows):
    params = init_params(SMALL, jax.random.key(7))
    index = np.broadcast_to(np.arange(24), rows.shape)
    inputs = (rows, index, np.ones_like(rows), np.roll(rows, -1, axis=1))

    def gradient(remat):
        model = Llama(SMALL, dataclasses.replace(F32, remat=remat))

        def loss(params):
            return model.apply({"params": params}, *inputs, method="loss").mean()

        return jax.jit(jax.grad(loss))(params)

    expected = gradient("none")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        gradient(remat),
        expected,
    )


def test_padded_vocabulary_is_never_predicted(rows):
    params = init_params(SMALL, jax.random.key(7))
    index = np.broadcast_to(np.arange(24), rows.shape)
    logits = ours(SMALL, params, rows, index, np.ones_like(rows))
    assert logits.shape[-1] == 384 and (logits[..., 300:] == -1e30).all()


@pytest.mark.parametrize(
    "name, billions",
    [("smollm2_360m", 0.362), ("tinyllama_1b", 1.100), ("llama2_7b", 6.738),
     ("llama2_13b", 13.016), ("llama2_70b", 68.977), ("llama3_8b", 8.030), ("mistral_7b", 7.242)],
)  # fmt: skip
def test_presets_have_the_published_number_of_parameters(name, billions):
    assert round(PRESETS[name].config.num_parameters / 1e9, 3) == billions


def test_num_parameters_counts_all_but_padding():
    params = init_params(SMALL, jax.random.key(0))
    held = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert held - 2 * (384 - 300) * SMALL.d_model == SMALL.num_parameters


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match="llama2_7b"):
        preset("llama2_8b")


def test_bf16_products_stay_near_f32(rows):
    params = init_params(SMALL, jax.random.key(7))
    index = np.broadcast_to(np.arange(24), rows.shape)
    exact = ours(SMALL, params, rows, index, np.ones_like(rows))[..., :300]
    bf16 = dataclasses.replace(F32, dtype="bfloat16")
    rounded = ours(SMALL, params, rows, index, np.ones_like(rows), bf16)[..., :300]
    assert rounded.dtype == jnp.float32
    assert np.abs(rounded - exact).max() < 0.05 * np.abs(exact).max()
