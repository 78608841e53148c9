"""A real pretrained LLaMA continues its reference text, through a Hugging Face directory."""

from qalign_jax.checkpoints.model import load_model
from qalign_jax.decoding.engine import Engine
from tests.pretrained import read_pieces, write_pretrained


def test_the_260k_model_continues_its_reference_text_for_200_tokens(real_data, tmp_path):
    folder = real_data / "tinyllama_260k"
    write_pretrained(folder, tmp_path)
    model = load_model(tmp_path, dtype="float32")
    # the reference text has no EOS: id 0, which the model never produces, stands for it
    engine = Engine([(model.module, model.params)], eos_ids=(0,), slots=1)
    (answer,) = engine.generate([[1]], 200)
    tokens = answer.tokens
    assert len(tokens) == 200

    pieces = [text for _, text in read_pieces(folder / "tok512.bin", model.config.vocab_size)]
    text = b""
    for token in tokens:
        piece = pieces[token]
        if piece.startswith(b"<0x") and piece.endswith(b">"):
            piece = bytes([int(piece[3:-1], 16)])
        text += piece
    expected = (folder / "greedy_reference_200tok.txt").read_text(encoding="utf-8")
    assert text.decode().strip() == expected.strip()
    assert model.tokenizer.decode(tokens).strip() == expected.strip()
