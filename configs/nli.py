"""Natural language inference (arXiv 2405.01345, v3): XNLI in 15 languages.

    python -m qalign_jax.run --config=configs/nli.py:llama2_7b --workdir=gs://bucket/nli7b \
        --config.base=/models/Llama-2-7b-hf --config.paths.xnli=/data/XNLI-1.0 \
        --config.paths.question_pairs=/data/XNLI-MT-1.0/multinli \
        --config.paths.responses=/data/multinli_1.0

The argument, and the slices that it fits, are as of configs/math_cot.py. Stage I translates
MultiNLI's premises and hypotheses, stage II labels the English ones. The paper's table was not at
hand: the result stands beside stage II alone. English-only LLaMA2-7B reaches 70.6 on XNLI
elsewhere, MindMerger 78.4.
"""

from ml_collections import ConfigDict

from qalign_jax.configs import two_stages
from qalign_jax.recipe import parts


def get_config(arg: str = "llama2_7b") -> ConfigDict:
    """The paper's two stages, its baseline, and the evaluation by labels and by likelihood."""
    config, words = two_stages.recipe(
        "nli",
        arg,
        pairs=parts.source("translated_pairs"),
        responses=parts.source("mnli"),
        benchmarks={"xnli": parts.benchmark()},
    )
    parts.check_words(words)
    return config
