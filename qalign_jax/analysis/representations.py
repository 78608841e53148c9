"""Where a model represents the same question in several languages.

A question's representation at a layer is the mean of its tokens' hidden states: BOS and the
question alone, without a prompt. Layers are counted as transformers' `output_hidden_states`: 0
is the embeddings, i the output of block i, the last one normed.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from qalign_jax.checkpoints.model import Model
from qalign_jax.data.tokenizer import Tokenizer
from qalign_jax.models.config import LlamaConfig
from qalign_jax.models.llama import Llama
from qalign_jax.parallel.mesh import batch_shards, sharding_of
from qalign_jax.progress import Progress

ENGLISH = "en"


def parallel_questions(problems: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """Language -> its questions, English first; the same ids in the same order in each.

    Args:
      problems: dicts of id, language and question. Ids that a language lacks are left out.

    Raises:
      ValueError: no English, nothing but English, or fewer than two questions in all languages.
    """
    found: dict[str, dict[str, str]] = {}
    for problem in problems:
        found.setdefault(problem["language"], {})[problem["id"]] = problem["question"]
    if ENGLISH not in found or len(found) < 2:
        raise ValueError(
            "expected parallel questions in English (en) and at least one other language, found "
            f"{' '.join(found) or 'none'}"
        )
    shared = [i for i in found[ENGLISH] if all(i in questions for questions in found.values())]
    if len(shared) < 2:
        raise ValueError(
            f"{len(shared)} questions have the same id in all of {' '.join(found)}; expected two "
            "or more, to compare translations with other questions"
        )
    every = set().union(*found.values())
    if left_out := len(every) - len(shared):
        logging.info("%d of %d questions are not in every language, left out", left_out, len(every))
    order = [ENGLISH, *(language for language in found if language != ENGLISH)]
    return {language: [found[language][i] for i in shared] for language in order}


def chosen_layers(config: LlamaConfig, layers: Sequence[int]) -> list[int]:
    """The layers, negative ones counted from the end; all of them where none is given.

    Raises:
      ValueError: a layer that the model does not have, or one twice.
    """
    count = config.n_layers + 1
    if wrong := [layer for layer in layers if not -count <= layer < count]:
        raise ValueError(
            f"the model has no layer {wrong[0]}; it has 0 (embeddings) to {config.n_layers} (the "
            "last block, normed)"
        )
    chosen = [layer % count for layer in layers] or list(range(count))
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"layers={tuple(layers)} names a layer of the model twice")
    return chosen


def encode(
    questions: Mapping[str, Sequence[str]], tokenizer: Tokenizer, max_length: int
) -> dict[str, list[list[int]]]:
    """The ids of every language's questions, BOS in front.

    Raises:
      ValueError: a question of more tokens than the model reads.
    """
    encoded = {language: tokenizer.encode_prompts(texts) for language, texts in questions.items()}
    for language, rows in encoded.items():
        if (longest := max(map(len, rows))) > max_length:
            raise ValueError(
                f"a question in {language} has {longest} tokens, the model reads {max_length}; "
                "leave the language out"
            )
    return encoded


def representations(
    model: Model,
    encoded: Mapping[str, Sequence[Sequence[int]]],
    *,
    mesh: Mesh,
    layers: Sequence[int] = (),
    batch_size: int = 16,
    name: str = "representations",
) -> dict[str, np.ndarray]:
    """Every language's [layers, questions, D] f32, on the host of every process.

    A device holds one batch's states of one layer; the host keeps the means of all questions, 1.3
    GB for 2,500 questions and the 33 layers of a 7B. One program is compiled a length bucket.

    Args:
      encoded: language -> ids of its questions, as `encode`.
      mesh: where the model's weights are; a batch is split over its data and fsdp axes.
      layers: as `chosen_layers`.
      batch_size: rows computed at once, rounded up to a multiple of the mesh's batch shards.
      name: of the progress.
    """
    layers = chosen_layers(model.config, layers)
    rows = [row for rows in encoded.values() for row in rows]
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))  # neighbours alike
    width = -(-batch_size // batch_shards(mesh)) * batch_shards(mesh)
    means = np.empty((len(layers), len(rows), model.config.d_model), np.float32)
    progress = Progress(name, len(rows), unit="question")
    for start in range(0, len(rows), width):
        batch = order[start : start + width]
        longest = _bucket(len(rows[batch[-1]]), model.config.max_length)
        tokens, lengths = np.zeros((width, longest), np.int32), np.ones(width, np.int32)
        for row, index in enumerate(batch):
            lengths[row] = len(rows[index])
            tokens[row, : lengths[row]] = rows[index]
        found = np.asarray(_layer_means(model.module, mesh, model.params, tokens, lengths))
        means[:, batch] = found[layers, : len(batch)]
        progress.add(sum(len(rows[index]) for index in batch), len(batch))
    progress.close()
    ends = np.cumsum([len(rows) for rows in encoded.values()])
    return dict(zip(encoded, np.split(means, ends[:-1], axis=1), strict=True))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _layer_means(module: Llama, mesh: Mesh, params, tokens, lengths) -> jax.Array:
    """As `Llama.layer_means`, whole on every device, for every host to read."""
    place = jax.lax.with_sharding_constraint
    tokens = place(tokens, sharding_of(mesh, ("batch", None)))
    means = module.apply({"params": params}, tokens, lengths, method="layer_means")
    return place(means, sharding_of(mesh, (None, None, None)))


def _bucket(length: int, most: int) -> int:
    return min(most, max(32, 1 << (length - 1).bit_length()))


# --- figures of one layer ----------------------------------------------------------------------


def compare(states: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """How near translations are to each other in one layer.

    Args:
      states: language -> [questions, D], the same questions in every language.

    Returns:
      {"centred": figures, "raw": figures, "between_languages": share}. Figures are of every
      language against English, and their `average` (`_against_english`). Hidden states of a layer
      have a large part in common, which makes raw cosines nearly equal: "centred" subtracts the
      mean of all questions in all languages first, as PCA does, and is the one that pictures
      show. `between_languages` is the share of the variance that lies between the languages'
      means: 0 where all languages have the same centre, 1 where a language is one point.
    """
    states = {language: np.asarray(each, np.float64) for language, each in states.items()}
    every = np.concatenate(list(states.values()))
    centre = every.mean(axis=0)
    centred = {language: each - centre for language, each in states.items()}
    total = np.square(every - centre).sum()
    between = sum(len(each) * np.square(each.mean(axis=0)).sum() for each in centred.values())
    return {
        "centred": _against_english(centred),
        "raw": _against_english(states),
        "between_languages": round(float(between / total), 4) if total else 0.0,
    }


def _against_english(states: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Language -> mean cosine of its questions to their English `translations` and to `others`,
    how much `nearer` translations are (the difference), and retrieval by the largest cosine, in
    percent: `to_english` and `from_english`; by chance it would be 100 / questions.
    """
    english, figures = _unit(states[ENGLISH]), {}
    for language, each in states.items():
        if language == ENGLISH:
            continue
        cosines = _unit(each) @ english.T
        count = len(cosines)
        translations = cosines.trace() / count
        others = (cosines.sum() - cosines.trace()) / (count * (count - 1))
        itself = np.arange(count)
        figures[language] = {
            "translations": translations,
            "others": others,
            "nearer": translations - others,
            "to_english": 100 * np.mean(cosines.argmax(axis=1) == itself),
            "from_english": 100 * np.mean(cosines.argmax(axis=0) == itself),
        }
    names = next(iter(figures.values()))
    average = {name: np.mean([each[name] for each in figures.values()]) for name in names}
    return {
        language: {name: round(float(value), 4) for name, value in each.items()}
        for language, each in {**figures, "average": average}.items()
    }


def _unit(states: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(states, axis=1, keepdims=True)
    return states / np.maximum(lengths, np.finfo(states.dtype).tiny)


def project(states: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """PCA of one layer to two dimensions, over the questions of all languages.

    A component's sign makes its largest weight positive.

    Args:
      states: language -> [questions, D]; D of 2 or more.

    Returns:
      {"explained": each component's share of the variance, "points": language -> [[x, y], ...]}.
    """
    every = np.concatenate(list(states.values())).astype(np.float64)
    every -= every.mean(axis=0)
    scores, spread, axes = np.linalg.svd(every, full_matrices=False)
    largest = np.abs(axes[:2]).argmax(axis=1)
    points = scores[:, :2] * spread[:2] * np.sign(axes[[0, 1], largest])
    ends = np.cumsum([len(each) for each in states.values()])
    total = np.square(spread).sum()
    return {
        "explained": [round(float(share), 4) for share in spread[:2] ** 2 / total],
        "points": {
            language: [[float(f"{value:.5g}") for value in point] for point in part]
            for language, part in zip(states, np.split(points, ends[:-1]), strict=True)
        },
    }
