"""Published figures that a run's own stand beside; none was measured here.

Languages by ISO 639-1 code, figures in percent; a mean is the plain mean over the ten languages.
"""

from collections.abc import Mapping
from typing import NamedTuple

# How a figure was found.
MARKS = {
    "read": "read in the authors' code, README or abstract",
    "quoted": "from a table that others quote; its sums were checked",
}

_PAPERS = "arXiv 2401.07817, 2405.01345"
_PAPER = "arXiv 2405.01345"
_MINDMERGER = "MindMerger, arXiv 2405.17386"


class Row(NamedTuple):
    """What one system reaches on one benchmark; None is not published.

    `ours` names the recipes' system that is trained alike, or is "".
    """

    benchmark: str
    model: str
    system: str
    ours: str
    average: float | None
    mark: str
    source: str
    non_english: float | None = None
    english: float | None = None
    languages: Mapping[str, float] = {}


class Consistency(NamedTuple):
    """Answers in the question's language."""

    benchmark: str
    model: str
    system: str
    languages: Mapping[str, float]
    average: float
    mark: str
    source: str


_LANGUAGES = ("bn", "th", "sw", "ja", "zh", "de", "fr", "ru", "es", "en")
_SFT = "stage II on GSM8K"
_TRANSLATED = "translate-training (MathOctopus)"
_STAGE_II = "stage II only (MetaMath)"
_BOTH = "both stages"
_EN_X = "both stages, En-X pairs in stage II"


def _languages(*figures: float) -> dict[str, float]:
    return dict(zip(_LANGUAGES, figures, strict=True))


def _by_mean(model: str, *figures: tuple[str, str, float, float]) -> list[Row]:
    """Rows of mGSM and mSVAMP where the mean alone is given."""
    return [
        Row(benchmark, model, system, ours, average, "read", _PAPERS)
        for system, ours, *averages in figures
        for benchmark, average in zip(("mgsm", "msvamp"), averages, strict=True)
    ]


def _two(model: str, stage_ii: tuple[float, ...], both: tuple[float, ...], **more) -> list[Row]:
    """Rows of mGSM: non-English, English and mean of stage II only and of both stages."""
    return [
        Row("mgsm", model, system, ours, average, "quoted", _PAPER, non_english, english, languages)
        for system, ours, (non_english, english, average), languages in (
            (_STAGE_II, "ralign", stage_ii, {}),
            (_BOTH, "qalign", both, more.get("languages", {})),
        )
    ]


ROWS = (
    *_by_mean(
        "LLaMA2-7B",
        (_SFT, "gsm8k_only", 22.6, 30.9),
        (_TRANSLATED, "translate_training", 40.0, 44.1),
    ),
    *_two(
        "LLaMA2-7B", (35.4, 65.5, 38.4), (47.6, 68.0, 49.6),
        languages=_languages(32.4, 39.6, 40.4, 44.0, 48.4, 54.8, 56.8, 52.4, 59.6, 68.0),
    ),
    Row(
        "mgsm", "LLaMA2-7B", _EN_X, "response_alignment_en_x", 41.0, "quoted", _PAPER,
        english=66.4,
        languages=_languages(21.2, 21.6, 24.8, 28.0, 41.6, 50.8, 55.2, 45.6, 54.4, 66.4),
    ),
    Row("msvamp", "LLaMA2-7B", _STAGE_II, "ralign", 46.2, "read", _PAPERS),
    Row("msvamp", "LLaMA2-7B", _BOTH, "qalign", 57.2, "read", _PAPERS),
    *_by_mean(
        "LLaMA2-13B",
        (_SFT, "gsm8k_only", 29.7, 38.1),
        (_TRANSLATED, "translate_training", 45.8, 46.5),
    ),
    *_two("LLaMA2-13B", (41.2, 68.4, 43.9), (55.7, 69.2, 57.1)),
    Row("msvamp", "LLaMA2-13B", _STAGE_II, "ralign", 51.8, "read", _PAPERS),
    Row("msvamp", "LLaMA2-13B", _BOTH, "qalign", 62.6, "read", _PAPERS),
    *_two("LLaMA2-70B", (47.7, 78.4, 50.8), (61.5, 76.0, 63.0)),
    *_two("LLaMA3-8B", (47.3, 74.4, 50.0), (58.4, 72.0, 59.8)),
    *_two("Mistral-7B", (35.2, 70.4, 38.7), (48.2, 70.8, 50.4)),
    Row("mgsm", "LLaMA2-7B", "MindMerger", "", 57.6, "quoted", _MINDMERGER),
    *(
        Row(benchmark, "Mistral-7B", "mCoT", "", average, "quoted", "mCoT, arXiv 2406.02301")
        for benchmark, average in (("mgsm", 66.2), ("msvamp", 57.7))
    ),
    *(
        Row(benchmark, "LLaMA2-7B", "MAPO-DPO", "", None, "quoted", "MAPO, arXiv 2401.06838", mean)
        for benchmark, mean in (("mgsm", 41.1), ("msvamp", 57.3))
    ),
    *(
        Row(benchmark, "LLaMA2-7B", system, "", average, "quoted", _MINDMERGER)
        for benchmark, system, average in (
            ("xcsqa", "tuned on English only", 50.9),
            ("xcsqa", "MindMerger", 61.0),
            ("xnli", "tuned on English only", 70.6),
            ("xnli", "MindMerger; has seen dev", 78.4),
        )
    ),
)  # fmt: skip

CONSISTENCY = (
    Consistency(
        "mgsm", "LLaMA2-7B", _BOTH,
        _languages(0.0, 0.0, 2.9, 0.0, 0.0, 0.5, 0.1, 0.1, 0.0, 93.8), 9.7, "quoted", _PAPER,
    ),
    Consistency(
        "mgsm", "LLaMA2-7B", _EN_X,
        _languages(26.8, 42.7, 49.3, 63.1, 26.8, 63.2, 36.9, 82.4, 37.9, 93.4), 52.3, "quoted",
        _PAPER,
    ),
)  # fmt: skip

_MODELS = {
    "llama2_7b": "LLaMA2-7B",
    "llama2_13b": "LLaMA2-13B",
    "llama2_70b": "LLaMA2-70B",
    "llama3_8b": "LLaMA3-8B",
    "mistral_7b": "Mistral-7B",
}


def rows(benchmark: str, presets: tuple[str, ...] = ()) -> list[Row]:
    """The figures of a benchmark, those of the models that a recipe names first."""
    return _sorted([row for row in ROWS if row.benchmark == benchmark], presets)


def consistency(benchmark: str, presets: tuple[str, ...] = ()) -> list[Consistency]:
    """The language consistency of a benchmark, in the same order."""
    return _sorted([row for row in CONSISTENCY if row.benchmark == benchmark], presets)


def _sorted(found: list, presets: tuple[str, ...]) -> list:
    first = {_MODELS.get(preset) for preset in presets}
    return sorted(found, key=lambda row: row.model not in first)
