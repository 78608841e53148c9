"""The real 260k-parameter LLaMA of llama2.c as a Hugging Face directory."""

import struct

import numpy as np
import safetensors.numpy
import transformers
from sentencepiece import sentencepiece_model_pb2


def write_pretrained(folder, target) -> None:
    """Writes config.json, model.safetensors and tokenizer.model from llama2.c's own files."""
    config, tensors = _read_weights(folder / "stories260K.bin")
    config.save_pretrained(target)
    safetensors.numpy.save_file(tensors, target / "model.safetensors")
    model = _sentencepiece(read_pieces(folder / "tok512.bin", config.vocab_size))
    (target / "tokenizer.model").write_bytes(model)


def read_pieces(path, vocab) -> list[tuple[float, bytes]]:
    """(score, text) of the pieces of a llama2.c tokenizer file."""
    data, pieces, at = path.read_bytes(), [], 4
    for _ in range(vocab):
        score, length = struct.unpack("fi", data[at : at + 8])
        pieces.append((score, data[at + 8 : at + 8 + length]))
        at += 8 + length
    return pieces


def _read_weights(path):
    """The config and the tensors, with query and key rows permuted.

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


def _sentencepiece(pieces) -> bytes:
    proto = sentencepiece_model_pb2.ModelProto()
    kinds = proto.SentencePiece
    for number, (score, text) in enumerate(pieces):
        kind = kinds.BYTE if text.startswith(b"<0x") else kinds.NORMAL
        kind = {0: kinds.UNKNOWN, 1: kinds.CONTROL, 2: kinds.CONTROL}.get(number, kind)
        piece = ("<unk>", "<s>", "</s>")[number] if number < 3 else text.decode()
        proto.pieces.add(piece=piece.replace(" ", "▁"), score=score, type=kind)
    proto.trainer_spec.model_type = proto.trainer_spec.BPE
    proto.trainer_spec.byte_fallback = True
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = True
    proto.normalizer_spec.remove_extra_whitespaces = False
    return proto.SerializeToString()
