"""The whole recipe on a laptop CPU: tiny models, six languages, generated word problems.

    python -m qalign_jax.run
"""

from ml_collections import ConfigDict
from qalign_jax.configs import common

NOTES = (
    "The models are pretrained here, on text that holds worked English solutions.",
    "Stage I replays a quarter of English pretraining text; without it arithmetic is forgotten.",
    "The prompt is short: 'Q: ...' and 'A:'.",
)


def get_config() -> ConfigDict:
    """The recipe; `--config.fast=True` shortens every stage and claims nothing."""
    stages = (
        "vocabulary", "pretraining", "question_alignment", "response_alignment",
        "response_alignment_only", "control", "control_response_alignment", "large_pretraining",
        "evaluation",
    )  # fmt: skip
    config = common.recipe(
        "demo", stages, seed=0, template="short", tokenizer="vocabulary", notes=NOTES
    )
    config.fast = False
    fast, seed = config.get_ref("fast").to_int(), config.get_ref("seed")

    def choose(full: int, quick: int):
        return fast * (quick - full) + full

    def problems(part: str, count: int, **options) -> ConfigDict:
        return common.source("word_problems", part=part, count=count, seed=seed, **options)

    def training(init: str, data: dict, steps: int, lr: float, **changes) -> ConfigDict:
        return common.training(
            init, data, steps=choose(steps, steps // 15), lr=lr, length=88, rows=16, b2=0.98,
            **changes,
        )  # fmt: skip

    documents = problems("pretraining", 20_000)
    replay = problems("pretraining", 4_000, english=1.0)
    pairs = problems("question_pairs", 12_000)
    answers = problems("responses", 4_000)

    config.vocabulary = ConfigDict(
        {"kind": "tokenizer", "vocab_size": 700, "symbols": tuple(map(str, range(41)))}
    )
    config.vocabulary.data = ConfigDict({"documents": problems("pretraining", 20_000)})
    config.pretraining = training(
        "random", {"documents": documents}, 900, 3e-3, preset="demo_small"
    )
    config.question_alignment = training(
        "pretraining", {"pairs": pairs, "replay": replay}, 450, 2e-3
    )
    config.response_alignment = training("question_alignment", {"answers": answers}, 150, 1e-3)
    config.response_alignment_only = training("pretraining", {"answers": answers}, 150, 1e-3)
    config.control = training(
        "pretraining", {"unpaired": problems("control", 12_000), "replay": replay}, 450, 2e-3
    )
    config.control_response_alignment = training("control", {"answers": answers}, 150, 1e-3)
    config.large_pretraining = training(
        "random", {"documents": documents}, 900, 3e-3, preset="demo_large"
    )
    config.evaluation = common.evaluation(
        systems={
            "base": common.system("pretraining"),
            "ralign": common.system("response_alignment_only"),
            "qalign": common.system("response_alignment"),
            "control": common.system("control_response_alignment"),
            "large": common.system("large_pretraining"),
            "large_proxy": common.system(
                "large_pretraining", expert="response_alignment", antiexpert="pretraining"
            ),
        },
        benchmarks={
            "word_problems": common.benchmark(
                part="test", count=choose(100, 10), seed=seed, max_new_tokens=64
            )
        },
        dtype="float32",
        slots=128,
        numbers_only=answers,
    )
    return config
