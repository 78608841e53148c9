"""A sentencepiece BPE model as Hugging Face tokenizer files, for exported models.

transformers reads a bare tokenizer.model too, but release 5 loses the order of its merges (two
spaces in a row are split otherwise) and does not find user-defined symbols.
"""

import json
import re
from collections.abc import Sequence

import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2 as pb2
from tokenizers import decoders, normalizers, processors

_Model = pb2.ModelProto  # pyright: ignore[reportAttributeAccessIssue]  # made at run time
_Piece = _Model.SentencePiece


def from_sentencepiece(model: bytes, probes: Sequence[str]) -> dict[str, bytes]:
    """tokenizer.json and tokenizer_config.json that split every text as the model does.

    BOS is put in front, as LLaMA's own files have it. The files are compared with the model on
    `probes`.

    Raises:
      ValueError: a model that those files cannot express (not BPE with byte fallback, or with a
        normalisation of its own).
    """
    proto = _Model.FromString(model)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = proto.pieces
    symbols = [piece.piece for piece in pieces if piece.type == _Piece.USER_DEFINED]
    special = [piece.piece for piece in pieces if piece.type in (_Piece.UNKNOWN, _Piece.CONTROL)]
    unknown, bos, eos = (
        pieces[i].piece for i in (processor.unk_id(), processor.bos_id(), processor.eos_id())
    )
    # the vocabulary holds a symbol as its text, by which its id is looked up
    vocab = {
        _text(piece.piece) if piece.type == _Piece.USER_DEFINED else piece.piece: i
        for i, piece in enumerate(pieces)
    }
    bpe = tokenizers.models.BPE(
        vocab, _merges(pieces), unk_token=unknown, fuse_unk=True, byte_fallback=True
    )
    tokenizer = tokenizers.Tokenizer(bpe)
    steps: list[normalizers.Normalizer] = [normalizers.Replace(" ", "▁")]
    if proto.normalizer_spec.add_dummy_prefix:
        steps.append(_prefix(symbols))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.add_special_tokens([tokenizers.AddedToken(text) for text in special])
    tokenizer.add_tokens([tokenizers.AddedToken(_text(s), normalized=True) for s in symbols])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", int(proto.normalizer_spec.add_dummy_prefix), 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, vocab[bos])]
    )
    tokenizer.encode_special_tokens = True
    for text in (*probes, *(f"a{symbol}b {symbol}" for symbol in map(_text, symbols))):
        if tokenizer.encode(text, add_special_tokens=False).ids != processor.encode(text):
            raise ValueError(f"no tokenizer.json splits {text!r} as this sentencepiece model does")
    tokenizer.encode_special_tokens = False
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "unk_token": unknown,
        "clean_up_tokenization_spaces": False,
    }
    return {
        "tokenizer.json": tokenizer.to_str(pretty=True).encode(),
        "tokenizer_config.json": (json.dumps(config, indent=2) + "\n").encode(),
    }


def _merges(pieces) -> list[tuple[str, str]]:
    """All pairs that make a piece, best piece first: sentencepiece merges by score."""
    plain = {piece.piece: piece.score for piece in pieces if piece.type == _Piece.NORMAL}
    ordered = sorted(plain, key=lambda text: -plain[text])  # stable: by id where scores are equal
    pairs = ((text[:cut], text[cut:]) for text in ordered for cut in range(1, len(text)))
    return [(left, right) for left, right in pairs if left in plain and right in plain]


def _prefix(symbols: list[str]):
    """Puts "▁" in front of a text, but not of a symbol: their texts are normalised too."""
    if not symbols:
        return normalizers.Prepend("▁")
    alone = "|".join(map(re.escape, symbols))
    return normalizers.Replace(tokenizers.Regex(rf"\A(?!(?:{alone})\z)"), "▁")


def _text(piece: str) -> str:
    return piece.replace("▁", " ")
