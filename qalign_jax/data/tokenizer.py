"""One small interface over sentencepiece models and Hugging Face tokenizer files."""

import abc
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence

import sentencepiece
from etils import epath

# What belongs to a tokenizer in a model's directory, kept so that `save` gives it back.
_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")
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

    @abc.abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text; special ids and ids beyond the vocabulary (a padded head's) are left out."""

    def hugging_face_files(self) -> dict[str, bytes]:
        """The files from which transformers' AutoTokenizer splits as this tokenizer does.

        Raises:
          ValueError: there are none (tokenizer_json.py).
        """
        return dict(self.files)

    def save(self, directory: str | os.PathLike) -> None:
        """Writes the files from which `load_tokenizer(directory)` gives the same tokenizer."""
        directory = epath.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (directory / name).write_bytes(content)


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
        except RuntimeError:
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

    def hugging_face_files(self):
        from qalign_jax.data.tokenizer_json import from_sentencepiece  # for those who leave

        made = from_sentencepiece(self.files["tokenizer.model"])
        return {"tokenizer.model": self.files["tokenizer.model"]} | made

    def decode(self, ids):
        known = [int(i) for i in ids if 0 <= i < self.vocab_size and self._text_ids[i]]
        return self._processor.decode(known)


class HuggingFaceTokenizer(Tokenizer):
    """A `tokenizer.json`; BOS and EOS as the files beside it say."""

    def __init__(self, files: Mapping[str, bytes], bos: int | str, eos: int | str, origin: str):
        import tokenizers  # two of three users never need it

        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{origin} is not a Hugging Face tokenizer.json: {error}") from None
        self._tokenizer.encode_special_tokens = True  # "</s>" in a text is text
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.bos_id, self.eos_id = (self._id(token, origin) for token in (bos, eos))
        kept = {"bos_token": self._token(self.bos_id), "eos_token": self._token(self.eos_id)}
        self.files = dict(files)
        config = json.loads(files.get("tokenizer_config.json", b"{}"))
        if any(_content(config.get(key)) != token for key, token in kept.items()):
            # The ids came from another file (config.json): say them where `save` writes.
            self.files["tokenizer_config.json"] = json.dumps(config | kept, indent=2).encode()
        ids = f"{self.bos_id} {self.eos_id}".encode()
        self.fingerprint = _fingerprint("huggingface", files["tokenizer.json"], ids)

    def encode_batch(self, texts):
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids):
        known = [int(i) for i in ids if 0 <= i < self.vocab_size]
        return self._tokenizer.decode(known, skip_special_tokens=True)

    def _id(self, token: int | str, origin: str) -> int:
        number = token if isinstance(token, int) else self._tokenizer.token_to_id(token)
        if isinstance(number, int) and not 0 <= number < self.vocab_size:
            raise ValueError(f"{origin} has no id {number}, which the files beside it name")
        if number is None:
            raise ValueError(f"{origin} has no token {token!r}, which the files beside it name")
        return number

    def _token(self, number: int) -> str:
        return self._tokenizer.id_to_token(number)


def load_tokenizer(path: str | os.PathLike) -> Tokenizer:
    """Reads a sentencepiece model file, or a directory with tokenizer.json or tokenizer.model.

    Raises:
      ValueError: nothing there, or not a tokenizer that this package reads.
    """
    path = epath.Path(path)
    if path.is_file():
        if path.suffix == ".json":
            return load_tokenizer(path.parent)
        return SentencePieceTokenizer({"tokenizer.model": path.read_bytes()}, str(path))
    if not path.is_dir():
        raise ValueError(f"tokenizer {path} does not exist; give a tokenizer.model or a directory")
    files = {name: (path / name).read_bytes() for name in _FILES if (path / name).is_file()}
    if "tokenizer.json" in files:
        origin = path / "tokenizer.json"
        bos, eos = (_special(path, kind) for kind in ("bos", "eos"))
        return HuggingFaceTokenizer(files, bos, eos, str(origin))
    if "tokenizer.model" in files:
        return SentencePieceTokenizer(files, str(path / "tokenizer.model"))
    raise ValueError(
        f"{path} holds neither tokenizer.json nor tokenizer.model; copy the tokenizer's files there"
    )


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
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    aside.write_bytes(written.getvalue())
    aside.replace(path)


def _special(directory: epath.Path, kind: str) -> int | str:
    """BOS or EOS of a Hugging Face directory: a token, or (from config.json) an id."""
    for name in ("tokenizer_config.json", "special_tokens_map.json", "config.json"):
        file = directory / name
        if not file.is_file():
            continue
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} is not JSON ({error}); download it again") from None
        if not isinstance(values, dict):
            raise ValueError(f"{file} is not a JSON object; download it again")
        token = _content(values.get(f"{kind}_token"))
        if isinstance(token, str) and token:
            return token
        number = values.get(f"{kind}_token_id")
        if number and isinstance(number, list):  # LLaMA3 lists several; the first is the base's
            number = number[0]
        if isinstance(number, int):
            return number
    raise ValueError(
        f"{directory} does not say its {kind.upper()} token; add {kind}_token to its "
        "tokenizer_config.json"
    )


def _content(token: object) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _fingerprint(kind: str, *parts: bytes) -> str:
    digest = hashlib.sha256(kind.encode())
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:16]
