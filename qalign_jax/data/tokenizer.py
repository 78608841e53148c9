"""One small interface over sentencepiece models and Hugging Face tokenizer files."""

import abc
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sentencepiece
from etils import epath

from qalign_jax import files

# The files of a tokenizer in a model's directory; `save` writes them again.
_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")
_REMEDY = "download it again"
_MOST_PIECES = 10**7  # ids beyond are no vocabulary, and tables by id would fill the memory
# Texts that tokenizers with equal pieces may split differently: spaces, digits, scripts, specials.
PROBES = (
    "Tom has 3  apples.\n\n1,234.5",
    " a",
    "汤姆有 12 个",
    "১৮ ｘ NBSP\u00a0ZWNJ\u200c",
    "</a>",
)
_TIKTOKEN = re.compile(rb"[A-Za-z0-9+/=]+ \d+\r?\n")


class Tokenizer(abc.ABC):
    """Text to ids and back. No BOS or EOS is added, and no text ever encodes to one.

    `files` maps file names to bytes: what `save` writes.
    """

    vocab_size: int
    bos_id: int
    eos_id: int
    fingerprint: str
    files: Mapping[str, bytes]

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    @abc.abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text."""

    def encode_prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text as a model reads it: BOS in front."""
        return [[self.bos_id, *ids] for ids in self.encode_batch(list(texts))]

    def encode_pairs(
        self, heads: Sequence[str], tails: Sequence[str]
    ) -> list[tuple[list[int], int]]:
        """The ids of prompts and what follows them, BOS in front, and the length of each prompt.

        Both are encoded as one text, as a model meets them; the prompt is what that has in common
        with the prompt alone.
        """
        texts = [head + tail for head, tail in zip(heads, tails, strict=True)]
        joint, alone = self.encode_prompts(texts), self.encode_prompts(heads)
        return [
            (together, _common(together, head)) for together, head in zip(joint, alone, strict=True)
        ]

    @abc.abstractmethod
    def piece(self, number: int) -> str:
        """The text of an id's piece, "▁" written as a space; "" where the id has none."""

    @abc.abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text; special ids, and ids of a padded head beyond the vocabulary, are left out."""

    def texts(self, ids: Sequence[int], others: Sequence[int]) -> tuple[list[str], list[str]]:
        """The text of each id where it stands, and that of the other id in its place.

        A character that several ids make up stands at the last of them, and the texts of the ids
        together are `decode(ids)`. Where an other id completes no character, its text is "".
        """
        whole = self.decode(ids)
        texts, other_texts = [], []
        # An id is decoded with those before it from `start` on: their text is the whole's from
        # `offset` on, which has been told up to `told`. Some that were told stay in front, as what
        # begins a text loses its space.
        start = seen = offset = told = 0
        for place, (number, other) in enumerate(zip(ids, others, strict=True)):
            window = list(ids[start:place])
            now = self.decode([*window, number])
            # an unfinished character reads otherwise in the whole
            end = offset + _common(now, whole[offset : offset + len(now)])
            end = max(told, end) if place < len(ids) - 1 else len(whole)
            texts.append(whole[told:end])
            if other == number:
                other_texts.append(texts[-1])
            else:
                instead = self.decode([*window, other])[told - offset :]
                other_texts.append(instead.strip("\ufffd"))
            if end > told and end == offset + len(now):
                start, seen = seen, place + 1
                offset = end - len(self.decode(ids[start:seen]))
            told = end
        return texts, other_texts

    def hugging_face_files(self) -> dict[str, bytes]:
        """The files from which transformers' AutoTokenizer splits as this tokenizer does.

        Raises:
          ValueError: there are none (tokenizer_json.py).
        """
        return dict(self.files)

    def save(self, directory: str | os.PathLike) -> None:
        """Writes the files from which `load_tokenizer(directory)` gives the same tokenizer."""
        for name, content in self.files.items():
            files.write_bytes(epath.Path(directory) / name, content)


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece `tokenizer.model`, as LLaMA2 and Mistral publish it."""

    def __init__(self, files: Mapping[str, bytes], origin: str):
        model = files["tokenizer.model"]
        if _TIKTOKEN.match(model):
            raise ValueError(
                f"{origin} is LLaMA3's tiktoken vocabulary, not a sentencepiece model; give the "
                "directory of the Hugging Face release, which holds tokenizer.json"
            )
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
            for number in range(self._processor.vocab_size()):
                self._processor.id_to_piece(number)  # raises where it is no UTF-8
        except (RuntimeError, UnicodeDecodeError):
            raise ValueError(
                f"{origin} is not a sentencepiece model; download it again (is it a Git LFS "
                "pointer?) or give a directory with tokenizer.json"
            ) from None
        self.files = dict(files)
        self.vocab_size = self._processor.vocab_size()
        self.bos_id, self.eos_id = self._processor.bos_id(), self._processor.eos_id()
        if min(self.bos_id, self.eos_id) < 0:
            raise ValueError(f"{origin} has no BOS or no EOS piece; train it with both")
        self.fingerprint = _fingerprint("sentencepiece", model)
        processor = self._processor
        self._text_ids = [
            not (processor.is_control(i) or processor.is_unknown(i)) for i in range(self.vocab_size)
        ]

    def encode_batch(self, texts):
        return self._processor.encode(list(texts), out_type=int, num_threads=os.cpu_count() or 1)

    def piece(self, number):
        return self._processor.id_to_piece(number).replace("▁", " ")

    def hugging_face_files(self):
        from qalign_jax.data.tokenizer_json import from_sentencepiece  # for exports alone

        made = from_sentencepiece(self.files["tokenizer.model"], PROBES)
        return {"tokenizer.model": self.files["tokenizer.model"]} | made

    def decode(self, ids):
        known = [int(i) for i in ids if 0 <= i < self.vocab_size and self._text_ids[i]]
        return self._processor.decode(known)


class HuggingFaceTokenizer(Tokenizer):
    """A `tokenizer.json`; BOS and EOS as the files beside it say."""

    def __init__(self, files: Mapping[str, bytes], bos: int | str, eos: int | str, origin: str):
        import tokenizers  # LLaMA2 and Mistral v1 do not need it

        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(files["tokenizer.json"])
            ids = set(self._tokenizer.get_vocab(with_added_tokens=True).values())
        except (KeyboardInterrupt, MemoryError):
            raise
        except BaseException as error:  # the library's are bare, and its panics no Exception
            raise ValueError(f"{origin} is not a Hugging Face tokenizer.json: {error}") from None
        if not ids or max(ids) >= _MOST_PIECES:
            raise ValueError(f"{origin} has no pieces, or ids of {_MOST_PIECES:,} and more")
        self._tokenizer.encode_special_tokens = True  # "</s>" in a text is text
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.vocab_size = max(ids) + 1
        self.bos_id, self.eos_id = (self._id(token, origin) for token in (bos, eos))
        kept = {
            f"{kind}_token": self._tokenizer.id_to_token(number)
            for kind, number in (("bos", self.bos_id), ("eos", self.eos_id))
        }
        self.files = dict(files)
        config = _object(files.get("tokenizer_config.json", b"{}"), origin)
        if any(_content(config.get(key)) != token for key, token in kept.items()):
            # The ids came from config.json, which `save` does not write: they go into this file.
            self.files["tokenizer_config.json"] = json.dumps(config | kept, indent=2).encode()
        special = f"{self.bos_id} {self.eos_id}".encode()
        self.fingerprint = _fingerprint("huggingface", files["tokenizer.json"], special)

    def encode_batch(self, texts):
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids):
        known = [int(i) for i in ids if 0 <= i < self.vocab_size]
        return self._tokenizer.decode(known, skip_special_tokens=True)

    def piece(self, number):
        return (self._tokenizer.id_to_token(number) or "").replace("▁", " ")

    def _id(self, token: int | str, origin: str) -> int:
        number = token if isinstance(token, int) else self._tokenizer.token_to_id(token)
        if number is None:
            raise ValueError(f"{origin} has no token {token!r}, which the files beside it name")
        if not 0 <= number < self.vocab_size:
            raise ValueError(f"{origin} has no id {number}, which the files beside it name")
        return number


def _common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many ids or characters two sequences share from their beginning."""
    both = zip(one, other, strict=False)
    least = min(len(one), len(other))
    return next((i for i, (a, b) in enumerate(both) if a != b), least)


def has_tokenizer(directory: str | os.PathLike) -> bool:
    """Whether `load_tokenizer` finds a tokenizer in a directory."""
    return any((epath.Path(directory) / name).is_file() for name in _FILES[:2])


def load_tokenizer(path: str | os.PathLike) -> Tokenizer:
    """Reads a sentencepiece model file, or a directory with tokenizer.json or tokenizer.model.

    Raises:
      ValueError: no tokenizer at this path, or one that this package does not read.
    """
    path = epath.Path(path)
    if path.is_file():
        if path.suffix == ".json":
            return load_tokenizer(path.parent)
        return SentencePieceTokenizer({"tokenizer.model": path.read_bytes()}, str(path))
    if not path.is_dir():
        raise ValueError(f"tokenizer {path} does not exist; give a tokenizer.model or a directory")
    found = {name: (path / name).read_bytes() for name in _FILES if (path / name).is_file()}
    if "tokenizer.json" in found:
        origin = path / "tokenizer.json"
        bos, eos = (_special(path, kind) for kind in ("bos", "eos"))
        return HuggingFaceTokenizer(found, bos, eos, str(origin))
    if "tokenizer.model" in found:
        return SentencePieceTokenizer(found, str(path / "tokenizer.model"))
    raise ValueError(
        f"{path} holds neither tokenizer.json nor tokenizer.model; copy the tokenizer's files there"
    )


def difference(one: Tokenizer, other: Tokenizer) -> str:
    """The first difference between two tokenizers; "" where text has the same ids in both.

    One of them may have more pieces than the other: a pad token was added, say.
    """
    if one.fingerprint == other.fingerprint:
        return ""
    for name in ("bos_id", "eos_id"):
        if (ids := (getattr(one, name), getattr(other, name)))[0] != ids[1]:
            return f"{name} is {ids[0]} and {ids[1]}"
    for number in range(min(one.vocab_size, other.vocab_size)):
        if (pieces := (one.piece(number), other.piece(number)))[0] != pieces[1]:
            return f"the piece {number} is {pieces[0]!r} and {pieces[1]!r}"
    for text, ids, others in zip(
        PROBES, one.encode_batch(PROBES), other.encode_batch(PROBES), strict=True
    ):
        if ids != others:
            return f"{text!r} has the ids {ids} and {others}"
    return ""


def train_sentencepiece(
    texts: Iterable[str],
    vocab_size: int,
    path: str | os.PathLike,
    user_defined_symbols: Sequence[str] = (),
    seed: int = 0,
) -> None:
    """Trains a BPE model with byte fallback on the texts and writes it to `path`.

    The pieces depend on nothing but the arguments; texts keep their spaces and newlines.
    """
    sentencepiece.set_random_generator_seed(seed)
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=written,
            model_type="bpe",
            vocab_size=vocab_size,
            user_defined_symbols=[text.replace(" ", "▁") for text in user_defined_symbols],
            byte_fallback=True,
            character_coverage=1.0,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(
            f"a vocabulary of {vocab_size} pieces cannot be trained on these texts: {error}; "
            "ask for fewer pieces or give more text"
        ) from None
    files.write_bytes(path, written.getvalue())


def _special(directory: epath.Path, kind: str) -> int | str:
    """BOS or EOS of a Hugging Face directory: a token, or (from config.json) an id."""
    for name in ("tokenizer_config.json", "special_tokens_map.json", "config.json"):
        file = directory / name
        if not file.is_file():
            continue
        values = files.read_object(file, _REMEDY)
        token = _content(values.get(f"{kind}_token"))
        if isinstance(token, str) and token:
            return token
        number = values.get(f"{kind}_token_id")
        if number and isinstance(number, list):  # LLaMA3 lists several; the first is the base's
            number = number[0]
        if type(number) is int:
            return number
    raise ValueError(
        f"{directory} does not say its {kind.upper()} token; add {kind}_token to its "
        "tokenizer_config.json"
    )


def _object(content: bytes, origin: str) -> dict[str, Any]:
    """The object in the tokenizer_config.json beside a tokenizer.json."""
    value = files.parse_json(content, f"tokenizer_config.json beside {origin}", _REMEDY)
    return value if isinstance(value, dict) else {}


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _fingerprint(kind: str, *parts: bytes) -> str:
    digest = hashlib.sha256(kind.encode())
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:16]
