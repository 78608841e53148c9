"""A system: one model, or a large one that an expert steers against an anti-expert."""

import collections
import copy
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

from jax.sharding import Mesh

from qalign_jax.checkpoints.card import (
    base_of,
    check_model,
    is_same_folder,
    read_card,
    tokenizer_directory,
)
from qalign_jax.checkpoints.model import Model, load_model
from qalign_jax.data.text_stream import TextStream
from qalign_jax.data.tokenizer import Tokenizer, difference, load_tokenizer
from qalign_jax.decoding.combine import Combine, ProxyTuning, combination
from qalign_jax.decoding.draft_length import AUTO, check_draft_tokens, draft_kind, named_kind
from qalign_jax.decoding.engine import Engine, Generated, Streamed
from qalign_jax.decoding.likelihood import Continuation
from qalign_jax.decoding.plan import LOOKUP, MODEL
from qalign_jax.decoding.sampling import Sampling
from qalign_jax.decoding.speculative import Drafted
from qalign_jax.decoding.trace import Trace
from qalign_jax.decoding.turns import Conversations, Turns
from qalign_jax.models.quantization import check_dtypes


@dataclasses.dataclass(frozen=True)
class System:
    """Loaded models, and how their logits are combined: made by `System.of` or `System.load`.

    The two dtypes are as of `Engine`, of weights and of caches, as is `draft_tokens`.
    """

    models: tuple[Model, ...]
    combine: Combine
    names: tuple[str, ...]  # of the models, and of a model that drafts for them, for messages
    weights_dtype: str = ""
    cache_dtype: str = ""
    draft: Model | Literal["lookup"] | None = None
    draft_tokens: int | str = AUTO

    @classmethod
    def of(
        cls,
        models: Sequence[Model],
        names: Sequence[str],
        alpha: float = 1.0,
        *,
        weights_dtype: str = "",
        cache_dtype: str = "",
        draft: Model | Literal["lookup"] | None = None,
        draft_tokens: int | str = AUTO,
    ) -> "System":
        """A system of one model, or of (large, expert, anti-expert).

        Args:
          names: of the models, and of a model that drafts.
          draft, draft_tokens: as of `Engine`.

        Raises:
          ValueError: another number of models, tokenizers that differ, another dtype than "int8",
            `draft_tokens` as of `Engine`.
        """
        check_dtypes(weights_dtype, cache_dtype)
        combine = combination(len(models), alpha)
        draft_kind(named_kind(draft), len(models), check_draft_tokens(draft_tokens))
        dtypes = weights_dtype, cache_dtype
        made = cls(tuple(models), combine, tuple(names), *dtypes, draft, draft_tokens)
        check_tokenizers(made.names, made.tokenizers)
        return made

    @classmethod
    def load(
        cls,
        directories: Sequence[str | os.PathLike],
        *,
        alpha: float = 1.0,
        mesh: Mesh | None = None,
        dtype: str | None = None,
        weights_dtype: str = "",
        cache_dtype: str = "",
        draft: str | os.PathLike = "",
        draft_tokens: int | str = AUTO,
    ) -> "System":
        """Loads a system from directories; arguments as of `load_model` and `of`.

        Weights are kept as decoding holds them, and in no other form. Those of an expert that is an
        adapter of the anti-expert are loaded once.

        Args:
          draft: the directory of a model that drafts, or "lookup"; "" as None of `Engine`. With
            0 `draft_tokens` no model is loaded to draft.

        Raises:
          ValueError: as both; tokenizers that differ, or an adapter of another base, before any
            weight is read.
        """
        check_dtypes(weights_dtype, cache_dtype)
        combination(len(directories), alpha)  # raises before any weight is read
        # the expert is loaded already
        if len(directories) == 3 and draft and os.fspath(draft) == os.fspath(directories[1]):
            draft = ""
        given = "" if not draft else LOOKUP if draft == LOOKUP else MODEL
        kind = draft_kind(given, len(directories), check_draft_tokens(draft_tokens))
        names = [os.fspath(path) for path in directories]
        names += [os.fspath(draft)] if kind == MODEL else []
        for name in names:
            check_model(name)
        tokenizers = [load_tokenizer(tokenizer_directory(name)) for name in names]
        check_tokenizers(names, tokenizers)
        shared = len(directories) == 3 and _shares_base(names[1], names[2], weights_dtype)
        models = load_models(
            [
                functools.partial(
                    load_model, name, mesh=mesh, dtype=dtype, tokenizer=tokenizer,
                    weights_dtype=weights_dtype,
                )
                for name, tokenizer in zip(names, tokenizers, strict=True)
            ],
            shared,
        )  # fmt: skip
        drafting = models.pop() if kind == MODEL else LOOKUP if given == LOOKUP else None
        return cls.of(
            models, names, alpha, weights_dtype=weights_dtype, cache_dtype=cache_dtype,
            draft=drafting, draft_tokens=draft_tokens,
        )  # fmt: skip

    @property
    def tokenizer(self) -> Tokenizer:
        return self.models[0].tokenizer

    @property
    def template(self) -> str:
        """The prompt template that the tuned model was trained with."""
        return self.models[1 if len(self.models) > 1 else 0].template

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of prompts, BOS in front.

        Raises:
          ValueError: the models' tokenizers read one of the texts differently.
        """
        return _encode(self.names, self.tokenizers, texts)

    @property
    def tokenizers(self) -> list[Tokenizer]:
        """Those of all models, a drafting one's among them."""
        drafting = [self.draft] if isinstance(self.draft, Model) else []
        return [model.tokenizer for model in [*self.models, *drafting]]

    def engine(
        self,
        *,
        mesh: Mesh | None = None,
        slots: int = 64,
        sampling: Sampling = Sampling(),
        trace: bool = False,
    ) -> Engine:
        """An engine that decodes with these models; arguments and errors as of `Engine`."""
        draft = self.draft
        if isinstance(draft, Model):
            draft = draft.module, draft.params
        return Engine(
            [(model.module, model.params) for model in self.models],
            self.combine,
            eos_ids=(self.tokenizer.eos_id,),
            mesh=mesh,
            slots=slots,
            sampling=sampling,
            trace=trace,
            weights_dtype=self.weights_dtype,
            cache_dtype=self.cache_dtype,
            draft=draft,
            draft_tokens=self.draft_tokens,
        )


class Answer(NamedTuple):
    """The answer to a prompt: the prompt's number, the text, the ids without EOS, their trace, and
    how they were drafted."""

    number: int
    text: str
    tokens: Sequence[int]
    trace: Trace | None = None
    drafted: Drafted | None = None


class Token(NamedTuple):
    """A token of an answer as it comes: the prompt's number, the id, its text."""

    number: int
    token: int
    text: str


class TextGenerator:
    """A system's engine with text in and out.

    It keeps the engine's weights, and not the system's.
    """

    def __init__(self, system: System, **options):
        """Takes the arguments of `System.engine`."""
        self._engine = system.engine(**options)
        self._names = system.names
        self._tokenizers = system.tokenizers

    def __call__(
        self,
        prompts: Sequence[str],
        max_new_tokens: int,
        numbers: Sequence[int] | None = None,
        turns: Turns | None = None,
    ) -> Iterator[Answer]:
        """Yields answers as they finish, in any order.

        Arguments and errors as in `Engine.generate`. With `turns` every turn has up to
        `max_new_tokens`, the text has the replies in it, and the ids are all that were generated.
        """
        encoded = self._encode(prompts)
        numbers = range(len(prompts)) if numbers is None else numbers
        conversations = None
        if turns is not None:
            tokenizer = self._tokenizers[0]
            conversations = Conversations(turns, numbers, prompts, tokenizer, self._encode)
        generated = self._engine.generate(encoded, max_new_tokens, numbers, conversations)
        return self._answers(generated, conversations)

    def stream(self, prompts: Sequence[str], max_new_tokens: int) -> Iterator[Token]:
        """Yields the tokens of all answers as they come, those of one answer in order.

        Their texts together are that of the answer (data/text_stream.py). Arguments and errors as
        in `Engine.stream`.
        """
        return self._tokens(self._engine.stream(self._encode(prompts), max_new_tokens))

    def with_options(self, **options) -> "TextGenerator":
        """A generator of the same weights; arguments as of `Engine.with_options`."""
        other = copy.copy(self)
        other._engine = self._engine.with_options(**options)
        return other

    def with_alpha(self, alpha: float) -> "TextGenerator":
        """A generator of the same three models, steered with another alpha.

        Raises:
          ValueError: one model alone, or an alpha that is no number.
        """
        other = copy.copy(self)
        other._engine = self._engine.with_combine(ProxyTuning(float(alpha)))
        return other

    def log_likelihoods(
        self, prompts: Sequence[str], choices: Sequence[Sequence[str]]
    ) -> Iterator[tuple[int, list[float]]]:
        """Yields (index of the prompt, log-likelihood of each choice in nats), in any order.

        Raises:
          ValueError: a prompt with a choice is longer than the models take.
        """
        heads = [prompt for prompt, row in zip(prompts, choices, strict=True) for _ in row]
        tails = [choice for row in choices for choice in row]
        self._encode([head + tail for head, tail in zip(heads, tails, strict=True)])
        pairs = self._tokenizers[0].encode_pairs(heads, tails)
        owners = [index for index, row in enumerate(choices) for _ in row]
        places = [place for row in choices for place in range(len(row))]
        found: dict[int, dict[int, float]] = collections.defaultdict(dict)
        for item, value in self._engine.log_likelihoods([Continuation(*pair) for pair in pairs]):
            index = owners[item]
            found[index][places[item]] = value
            if len(found[index]) == len(choices[index]):
                row = found.pop(index)
                yield index, [row[place] for place in range(len(row))]

    def _tokens(self, events: Iterator[Streamed]) -> Iterator[Token]:
        streams: dict[int, TextStream] = {}
        for number, tokens, answer in events:
            if number not in streams:
                streams[number] = TextStream(self._tokenizers[0])
            for token in tokens:
                yield from (Token(number, *told) for told in streams[number].add(token))
            if answer:
                yield from (Token(number, *told) for told in streams.pop(number).end())

    def _answers(
        self, generated: Iterator[Generated], conversations: Conversations | None
    ) -> Iterator[Answer]:
        tokenizer = self._tokenizers[0]
        try:
            for number, ids, traced, drafted in generated:
                text = conversations.answers[number] if conversations else tokenizer.decode(ids)
                trace = None if traced is None else Trace.of(tokenizer, ids, traced)
                yield Answer(number, text, ids, trace, drafted)
        finally:
            if conversations:
                conversations.close()

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return _encode(self._names, self._tokenizers, texts)


def load_models(loads: Sequence[Callable[..., Model]], shared: bool) -> list[Model]:
    """Calls what loads each model, in the order of a system's.

    Args:
      loads: take `adapted`, as of `load_model`.
      shared: whether the expert is an adapter of the anti-expert, which is then not loaded.
    """
    models: list[Model] = []
    for place, load in enumerate(loads):
        if shared and place == 2:
            models.append(models[1].base)
        else:
            models.append(load(adapted=True if shared and place == 1 else None))
    return models


def _shares_base(expert: str, antiexpert: str, weights_dtype: str) -> bool:
    """Whether the expert is an adapter that was trained beside the anti-expert's weights."""
    own = read_card(expert).part
    if own is None or not own.trainable.fits_beside(weights_dtype):
        return False
    return is_same_folder(base_of(expert), antiexpert)


def check_tokenizers(names: Sequence[str], tokenizers: Sequence[Tokenizer]) -> None:
    """Raises a ValueError where tokenizers differ: neither logits of different pieces can be added,
    nor drafts of different pieces be compared."""
    for name, tokenizer in zip(names[1:], tokenizers[1:], strict=True):
        if found := difference(tokenizers[0], tokenizer):
            raise _tokenizers_differ(names[0], name, found)


def _encode(
    names: Sequence[str], tokenizers: Sequence[Tokenizer], texts: Sequence[str]
) -> list[list[int]]:
    """The ids of prompts, which all tokenizers must agree on."""
    encoded = tokenizers[0].encode_prompts(texts)
    for name, other in zip(names[1:], tokenizers[1:], strict=True):
        if other.fingerprint == tokenizers[0].fingerprint:
            continue
        for text, ids, others in zip(texts, encoded, other.encode_prompts(texts), strict=True):
            if ids != others:
                raise _tokenizers_differ(names[0], name, f"{text!r} has other ids")
    return encoded


def _tokenizers_differ(one: str, other: str, how: str) -> ValueError:
    return ValueError(
        f"the tokenizers of {one} and {other} differ: {how}; logits are added up and "
        "drafts compared by id, so the models must share their tokenizer"
    )
