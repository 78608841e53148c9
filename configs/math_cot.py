"""Reasoning with chain of thought (arXiv 2405.01345): mGSM and mSVAMP in ten languages.

    python -m qalign_jax.run --config=configs/math_cot.py:llama2_7b --workdir=gs://bucket/qalign7b \
        --config.base=/models/Llama-2-7b-hf --config.paths.question_pairs=... \
        --config.paths.responses=... --config.paths.mgsm=... --config.paths.msvamp=...

The argument is a model preset and optionally a TPU slice, whose meshes are in configs/slices.py:
llama2_70b,v5p-128. Published mean over ten languages, mGSM / mSVAMP: stage II only 38.4 / 46.2,
both stages 49.6 / 57.2 for LLaMA2-7B; 43.9 / 51.8 and 57.1 / 62.6 for 13B.
"""

from ml_collections import ConfigDict

from qalign_jax.configs import slices
from qalign_jax.recipe import parts


def get_config(arg: str = "llama2_7b") -> ConfigDict:
    """The paper's two stages, its baseline, and the evaluation."""
    model, where = parts.parse_arg(arg)
    stages = (
        "question_alignment", "response_alignment", "response_alignment_only", "evaluation",
    )  # fmt: skip
    config = parts.recipe("math_cot_" + model, stages)
    if where:
        config.mesh, decoding = slices.mesh_for(slices.MESHES, model, where)
    config.base = "random"  # a Hugging Face or Orbax directory of the untuned model
    config.paths = ConfigDict({"question_pairs": "", "responses": "", "mgsm": "", "msvamp": ""})
    config.responses = "metamath"  # format of paths.responses; or gsm8k, gsm8kinstruct, jsonl
    path = config.paths.get_ref
    base = config.get_ref("base")

    pairs = parts.source("question_pairs", path("question_pairs"))
    responses = parts.source(config.get_ref("responses"), path("responses"))
    config.question_alignment = parts.training(base, {"question_pairs": pairs}, preset=model)
    config.response_alignment = parts.training("question_alignment", {"responses": responses})
    config.response_alignment_only = parts.training(base, {"responses": responses}, preset=model)
    config.evaluation = parts.evaluation(
        systems={
            "base": parts.system(base, preset=model),
            "ralign": parts.system("response_alignment_only"),
            "qalign": parts.system("response_alignment"),
        },
        benchmarks={
            "mgsm": parts.benchmark(path("mgsm")),
            "msvamp": parts.benchmark(path("msvamp")),
        },
    )
    if where:
        config.evaluation.mesh = decoding
    return config
