"""Accuracy against the amount of translation data (arXiv 2405.01345): slices of the pairs.

    python -m qalign_jax.run --config=configs/data_scale.py:llama2_7b --workdir=gs://bucket/scale \
        --config.base=/models/Llama-2-7b-hf --config.paths.question_pairs=... \
        --config.paths.responses=... --config.paths.mgsm=... --config.paths.msvamp=...

The argument, and the slices that it fits, are as of configs/math_cot.py. Stage I sees 1, 5, 25 and
100 % of the pairs, each three times, so that a smaller slice takes fewer steps (the demo repeats
slices to equal steps instead); stage II is the same. The stage `data_scale` leaves the curve. The
paper's figures were not at hand; its two ends are the rows of configs/math_cot.py.
"""

from ml_collections import ConfigDict

from qalign_jax.configs import two_stages
from qalign_jax.recipe import parts

SHARES = (1, 5, 25)  # per cent, beside all and none


def get_config(arg: str = "llama2_7b") -> ConfigDict:
    """The scenario with chain of thought, its stage I on slices of the pairs, and the curve."""
    config, words = two_stages.recipe(
        "data_scale",
        arg,
        pairs=parts.source("question_pairs"),
        responses=parts.source("metamath"),
        benchmarks={"mgsm": parts.benchmark(), "msvamp": parts.benchmark()},
    )
    two_stages.add_reasoning(config)
    parts.check_words(words)
    path, base = config.paths.get_ref, config.get_ref("base")
    model, responses = config.question_alignment.preset, dict(config.response_alignment.data)
    seen: dict[str, str | int] = {"ralign": 0, "qalign": "question_alignment"}
    for share in SHARES:
        pairs = parts.source("question_pairs", path("question_pairs"), slice=f"[:{share}%]")
        aligned = f"question_alignment_{share}"
        two_stages.add(
            config, aligned, two_stages.train(config, base, {"pairs": pairs}, preset=model)
        )
        tuned = two_stages.train(config, aligned, responses)
        system = f"qalign_{share}"
        two_stages.add(config, f"response_alignment_{share}", tuned, system)
        seen[system] = aligned
    config.data_scale = parts.data_scale("evaluation", seen)
    config.stages = (*config.stages, "data_scale")
    return config
