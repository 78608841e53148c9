"""Accuracies, averaged as the paper averages, with their intervals and paired comparisons.

The questions of a benchmark are the same in every language, so 250 questions in ten languages are
250 clusters and not 2,500 samples: what concerns an average resamples question ids, all languages
together. Random numbers have a fixed seed, so the figures do not depend on the run.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

_CONFIDENCE = 0.95
_RESAMPLES = 10_000
_BATCH = 500  # resamples at a time: 1,000 questions take 4 MB
_SEED = 0

# Language -> question id -> whether the answer is right.
Correct = Mapping[str, Mapping[str, bool]]


def accuracies(correct: Mapping[str, Sequence[bool]], averaged: Sequence[str]) -> dict[str, float]:
    """Percentages, rounded to two decimals: each language, `average` and `non_english`.

    `average` is the plain mean over those languages of `averaged` that are present (over all
    present ones if none of them is), so that a language with more problems counts no more;
    `non_english` is the same without English, left out where nothing but English is present.
    """
    per_language = {
        language: 100.0 * sum(row) / len(row) for language, row in correct.items() if row
    }
    if not per_language:
        raise ValueError("there is no answer to score")
    scores = dict(per_language)
    for name, languages in _averages(per_language, averaged).items():
        scores[name] = sum(per_language[language] for language in languages) / len(languages)
    return {name: round(score, 2) for name, score in scores.items()}


def intervals(correct: Correct, averaged: Sequence[str]) -> dict[str, list[float]]:
    """95 % confidence intervals in percent of the figures of `accuracies`, under the same names.

    A language: Wilson's interval. An average: percentiles of the bootstrap over question ids; where
    all questions score the same it sees no spread, and the means of the languages' bounds stand
    instead, as if the languages were copies of each other. Languages may lack ids.

    Raises:
      ValueError: there is no answer.
    """
    from scipy import stats  # half a second

    correct = {language: row for language, row in correct.items() if row}
    if not correct:
        raise ValueError("there is no answer to score")
    bounds = {}
    for language, row in correct.items():
        test = stats.binomtest(sum(map(bool, row.values())), len(row))
        bounds[language] = np.array(test.proportion_ci(_CONFIDENCE, method="wilson"))
    found = {language: _percent(bound) for language, bound in bounds.items()}
    for name, languages in _averages(correct, averaged).items():
        scores = _by_question(_table(correct, languages))
        interval = _bootstrap(scores)
        if interval is None:
            interval = np.mean([bounds[language] for language in languages], axis=0)
        found[name] = _percent(interval)
    return found


def compare(
    correct: Correct, baseline: Correct, averaged: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Differences to a baseline in percentage points, with paired, two-sided p-values.

    Only questions that both have answered count. A language: McNemar's mid-p test, and Holm's
    correction over the languages here. An average: a permutation test that exchanges the two
    systems' answers to a question in all languages together (10,000 resamples, so p is at least
    0.0001), and the bootstrap's 95 % interval, which is the difference itself where all questions
    differ alike.

    Returns:
      {"<language>": {"difference", "p", "p_holm"}, "average": {"difference", "interval", "p"},
      "non_english": ..}; empty where no question is common to both.
    """
    differences = {}
    for language in correct.keys() & baseline.keys():
        row, other = correct[language], baseline[language]
        if common := row.keys() & other.keys():
            differences[language] = {key: int(row[key]) - int(other[key]) for key in common}
    differences = {
        language: differences[language] for language in correct if language in differences
    }
    if not differences:
        return {}
    found: dict[str, dict[str, Any]] = {}
    for language, row in differences.items():
        gained, lost = (sum(value == sign for value in row.values()) for sign in (1, -1))
        found[language] = {
            "difference": round(100.0 * (gained - lost) / len(row), 2),
            "p": mcnemar_mid_p(gained, lost),
        }
    corrected = holm([scores["p"] for scores in found.values()])
    for scores, p in zip(found.values(), corrected, strict=True):
        scores["p_holm"] = p
    for name, languages in _averages(differences, averaged).items():
        table = _table(differences, languages)
        scores = _by_question(table)
        difference = scores.mean()
        interval = _bootstrap(scores)
        found[name] = {
            "difference": round(100.0 * float(difference), 2),
            "interval": _percent([difference] * 2 if interval is None else interval),
            "p": _sign_flip_p(_by_question(table, 0.0)),
        }
    return found


def mcnemar_mid_p(gained: int, lost: int) -> float:
    """The two-sided mid-p of McNemar's test from the discordant pairs; 1 where there is none.

    The exact binomial test's p-value with half the observed point's mass taken off either tail.
    """
    from scipy import stats

    fewer, pairs = min(gained, lost), gained + lost
    p = 2 * stats.binom.cdf(fewer, pairs, 0.5) - stats.binom.pmf(fewer, pairs, 0.5)
    return min(1.0, float(p))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction, in the order given."""
    order = np.argsort(p_values)
    factors = len(p_values) - np.arange(len(p_values))
    corrected = np.maximum.accumulate(factors * np.asarray(p_values)[order])
    result = np.empty(len(p_values))
    result[order] = np.minimum(corrected, 1.0)
    return result.tolist()


def _averages(present: Iterable[str], averaged: Sequence[str]) -> dict[str, list[str]]:
    """`average` and `non_english`, each with the languages that it is the mean of."""
    present = list(present)
    counted = [language for language in averaged if language in present] or present
    others = [language for language in counted if language != "en"]
    return {"average": counted, **({"non_english": others} if others else {})}


def _table(values: Mapping[str, Mapping[str, float]], languages: Sequence[str]) -> np.ndarray:
    """Values [questions, languages], NaN where a language lacks a question."""
    keys = sorted({key for language in languages for key in values[language]})
    return np.array(
        [[values[language].get(key, np.nan) for language in languages] for key in keys], np.float64
    )


def _by_question(table: np.ndarray, centre: float | None = None) -> np.ndarray:
    """One value a question; their mean is the mean over languages of the languages' means.

    With no question missing, a question's value is its mean over languages. Else a language that
    lacks a question gives it `centre` (by default the language's mean) and weighs its other
    questions up, the linear approximation to a mean of ratios.
    """
    there = ~np.isnan(table)
    means = np.nanmean(table, axis=0) if centre is None else np.full(table.shape[1], centre)
    weighted = np.where(there, table - means, 0.0) * (len(table) / there.sum(0))
    return (means + weighted).mean(1)


def _bootstrap(scores: np.ndarray) -> np.ndarray | None:
    """The interval of the mean; None where there is no spread."""
    from scipy import stats

    if np.ptp(scores) < 1e-9:
        return None
    result = stats.bootstrap(
        (scores,), np.mean, confidence_level=_CONFIDENCE, method="percentile", vectorized=True,
        n_resamples=_RESAMPLES, batch=_BATCH, rng=np.random.default_rng(_SEED),
    )  # fmt: skip
    return np.array(result.confidence_interval)


def _sign_flip_p(differences: np.ndarray) -> float:
    """Two-sided p-value of a mean of paired differences whose signs are exchangeable."""
    rng = np.random.default_rng(_SEED)
    total, extreme = differences.sum(), 0
    for _ in range(_RESAMPLES // _BATCH):
        flips = rng.integers(2, size=(_BATCH, len(differences)), dtype=np.int8)
        sums = total - 2 * (flips @ differences)
        extreme += int((np.abs(sums) >= abs(total) - 1e-9).sum())
    return (1 + extreme) / (1 + _RESAMPLES)


def _percent(interval: Iterable[float]) -> list[float]:
    return [round(100.0 * float(bound), 2) for bound in interval]
