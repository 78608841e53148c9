r"""Reasoning with executable code (arXiv 2405.01345): mGSM and mSVAMP, the code run in a sandbox.

    python -m qalign_jax.run --config=configs/math_code.py:llama2_7b --workdir=gs://bucket/code7b \
        --config.base=/models/Llama-2-7b-hf --config.paths.question_pairs=... \
        --config.paths.responses=/data/OpenMathInstruct-1 --config.paths.mgsm=... \
        --config.paths.msvamp=...

The argument, and the slices that it fits, are as of configs/math_cot.py. Stage II is
OpenMathInstruct-1: its solutions write code, read its output, and end with \boxed{}. An answer is
decoded up to the end of a block, 512 tokens at most, goes on behind the block's output, and has at
most three blocks. The paper's prompt, subset and table were not at hand: the result stands beside
stage II alone. --config.template=openmath is the prompt of the data's authors, whose tuned
LLaMA2-70B reaches 84.7 on English GSM8K.
"""

from ml_collections import ConfigDict

from qalign_jax.configs import two_stages
from qalign_jax.recipe import parts


def get_config(arg: str = "llama2_7b") -> ConfigDict:
    """The paper's two stages, its baseline, and the evaluation by executing."""
    executed = {"protocol": "code", "max_new_tokens": 512}
    config, words = two_stages.recipe(
        "math_code",
        arg,
        pairs=parts.source("question_pairs"),
        responses=parts.source("openmath", cap=0),
        benchmarks={"mgsm": parts.benchmark(**executed), "msvamp": parts.benchmark(**executed)},
    )
    parts.check_words(words)
    config.evaluation.slots = 32  # caches have room for three outputs and four turns
    return config
