"""Common sense without chain of thought (arXiv 2405.01345): X-CSQA in 16 languages, and XCOPA.

    python -m qalign_jax.run --config=configs/commonsense.py:llama2_7b --workdir=gs://bucket/csqa \
        --config.base=/models/Llama-2-7b-hf --config.paths.question_pairs=... \
        --config.paths.responses=/data/commonsenseqa --config.paths.xcsqa=/data/X-CSQA \
        --config.paths.xcopa=/data/xcopa

The argument, and the slices that it fits, are as of configs/math_cot.py. Stage I translates CSQA's
questions with their options (paths.question_pairs: translated questions in X-CSQA's layout); stage
II answers English CSQA by a letter. The paper's table was not at hand: the result stands beside
stage II alone. English-only LLaMA2-7B reaches 50.9 on X-CSQA elsewhere, MindMerger 61.0.
"""

from ml_collections import ConfigDict

from qalign_jax.configs import two_stages
from qalign_jax.recipe import parts


def get_config(arg: str = "llama2_7b") -> ConfigDict:
    """The paper's two stages, its baseline, and the evaluation by letters and by likelihood."""
    config, words = two_stages.recipe(
        "commonsense",
        arg,
        pairs=parts.source("translated_pairs"),
        responses=parts.source("csqa"),
        benchmarks={"xcsqa": parts.benchmark(), "xcopa": parts.benchmark()},
    )
    parts.check_words(words)
    return config
