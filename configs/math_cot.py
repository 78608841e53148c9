"""Reasoning with chain of thought (arXiv 2405.01345): mGSM and mSVAMP in ten languages.

    python -m qalign_jax.run --config=configs/math_cot.py:llama2_7b --workdir=gs://bucket/qalign7b \
        --config.base=/models/Llama-2-7b-hf --config.paths.question_pairs=... \
        --config.paths.responses=... --config.paths.mgsm=... --config.paths.msvamp=...

The argument is a model preset and optionally a TPU slice, whose meshes are in configs/slices.py,
and the word `baselines`: llama2_70b,v5p-128,baselines. Slices that it fits, as compiled:
SmolLM2-360M v5e:1x1; TinyLlama-1.1B v6e:1x1; LLaMA2-7B v4:2x2x1, v5e:4x4, v5p:2x2x1, v6e:2x4;
LLaMA3-8B and Mistral-7B v5e:4x4; 13B v4:2x2x4, v5e:8x8, v6e:4x4; 70B v4:4x4x8, v5p:2x2x4,
v5p:4x4x4, v5e:16x16, v6e:16x16. On smaller ones the stages train adapters (LoRA) beside frozen
weights: in int8 7B v5e:1x1, 13B v6e:1x1 and 70B v5e:4x4, in bf16 7B v6e:1x1 and 70B v6e:2x4. On any
slice `--config.adapter.rank=64 --config.lr=2e-4` does.

Published mean over ten languages, mGSM / mSVAMP; `baselines` adds the last three rows:

                                         LLaMA2-7B     13B
    both stages                          49.6 / 57.2   57.1 / 62.6
    stage II only                        38.4 / 46.2   43.9 / 51.8
    GSM8K only                           22.6 / 30.9   29.7 / 38.1
    GSM8KInstruct, translate-training    40.0 / 44.1   45.8 / 46.5
    En-X pairs in stage II, mGSM         41.0

mGSM, stage II only and both stages: LLaMA2-70B 50.8, 63.0; LLaMA3-8B 50.0, 59.8; Mistral-7B 38.7,
50.4.
"""

from ml_collections import ConfigDict

from qalign_jax.configs import two_stages
from qalign_jax.recipe import parts


def get_config(arg: str = "llama2_7b") -> ConfigDict:
    """The paper's two stages, its baseline, and the evaluation.

    `config.responses` is the data set of paths.responses: metamath, or gsm8k, gsm8kinstruct, jsonl.
    """
    config, words = two_stages.recipe(
        "math_cot",
        arg,
        pairs=parts.source("question_pairs"),
        responses=parts.source("metamath"),
        benchmarks={"mgsm": parts.benchmark(), "msvamp": parts.benchmark()},
    )
    two_stages.add_reasoning(config)
    parts.check_words(words, ("baselines",))
    if words:
        _add_baselines(config)
    return config


def _add_baselines(config: ConfigDict) -> None:
    config.paths.update({"gsm8k": "", "gsm8kinstruct": ""})
    path, base, model = (
        config.paths.get_ref,
        config.get_ref("base"),
        config.question_alignment.preset,
    )
    english = parts.source("gsm8k", path("gsm8k"))
    native = parts.source("gsm8kinstruct", path("gsm8kinstruct"))
    reverse = parts.source("question_pairs", path("question_pairs"), reverse=True)
    mixed = {"responses": config.response_alignment.data.responses, "translations": reverse}
    for name, init, data in (
        ("gsm8k_only", base, {"gsm8k": english}),
        ("translate_training", base, {"gsm8kinstruct": native}),
        ("multilingual_tuning", "response_alignment", {"gsm8kinstruct": native}),
        ("response_alignment_en_x", "question_alignment", mixed),
    ):
        stage = two_stages.train(config, init, data, preset=model)
        two_stages.add(config, name, stage, system=name)
