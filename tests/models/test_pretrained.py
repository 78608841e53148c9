"""A real pretrained LLaMA continues its reference text, through a Hugging Face directory."""

import dataclasses
import struct

import jax
import numpy as np
import safetensors.numpy
import transformers

from qalign_jax.decoding.engine import Engine
from qalign_jax.models import hf
from qalign_jax.parallel.mesh import make_mesh


def read_llama2c(path):
    """The header and the weights of a llama2.c file as Hugging Face tensors.

    llama2.c rotates neighbouring dimensions, Hugging Face the two halves of a head.
    """
    data = path.read_bytes()
    dim, hidden, layers, heads, kv_heads, vocab, length = struct.unpack("7i", data[:28])
    values = np.frombuffer(data, np.float32, offset=28)
    size, kv = dim // heads, dim // heads * kv_heads
    shapes = {
        "model.embed_tokens.weight": (vocab, dim),
        "input_layernorm": (layers, dim),
        "self_attn.q_proj": (layers, dim, dim),
        "self_attn.k_proj": (layers, kv, dim),
        "self_attn.v_proj": (layers, kv, dim),
        "self_attn.o_proj": (layers, dim, dim),
        "post_attention_layernorm": (layers, dim),
        "mlp.gate_proj": (layers, hidden, dim),
        "mlp.down_proj": (layers, dim, hidden),
        "mlp.up_proj": (layers, hidden, dim),
        "model.norm.weight": (dim,),
    }
    tensors, start = {}, 0
    for name, shape in shapes.items():
        end = start + int(np.prod(shape))
        array = values[start:end].reshape(shape)
        start = end
        if name in ("self_attn.q_proj", "self_attn.k_proj"):
            pairs = array.reshape(layers, -1, size // 2, 2, dim)
            array = pairs.swapaxes(2, 3).reshape(shape)
        if name.startswith("model."):
            tensors[name] = array.copy()
        else:
            for layer in range(layers):
                tensors[f"model.layers.{layer}.{name}.weight"] = array[layer].copy()
    config = transformers.LlamaConfig(
        vocab_size=vocab, hidden_size=dim, intermediate_size=hidden, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=length,
        rms_norm_eps=1e-5, tie_word_embeddings=True,
    )  # fmt: skip
    return config, tensors


def read_pieces(path, vocab):
    """The pieces of a llama2.c tokenizer file."""
    data, pieces, at = path.read_bytes(), [], 4
    for _ in range(vocab):
        _, length = struct.unpack("fi", data[at : at + 8])
        pieces.append(data[at + 8 : at + 8 + length])
        at += 8 + length
    return pieces


def test_the_260k_model_continues_its_reference_text_for_200_tokens(real_data, tmp_path):
    folder = real_data / "tinyllama_260k"
    config, tensors = read_llama2c(folder / "stories260K.bin")
    config.save_pretrained(tmp_path)
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")

    mesh = make_mesh("", jax.devices()[:1])
    ours = hf.read_config(tmp_path)
    params = hf.read_params(tmp_path, ours, mesh)
    # the reference stops nowhere: an id that is never produced ends the answer
    engine = Engine([(dataclasses.replace(ours, dtype="float32"), params)], eos_ids=(0,), slots=1)
    ((_, tokens),) = engine.generate([[1]], 200)
    assert len(tokens) == 200

    pieces = read_pieces(folder / "tok512.bin", config.vocab_size)
    text = b""
    for token in tokens:
        piece = pieces[token]
        if piece.startswith(b"<0x") and piece.endswith(b">"):
            piece = bytes([int(piece[3:-1], 16)])
        text += piece
    expected = (folder / "greedy_reference_200tok.txt").read_text(encoding="utf-8")
    assert text.decode().strip() == expected.strip()
