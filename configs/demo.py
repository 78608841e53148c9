"""The whole recipe on a laptop CPU: tiny models, six languages, generated word problems.

python -m qalign_jax.run
"""

from ml_collections import ConfigDict

from qalign_jax.recipe import parts

NOTES = (
    "The models are pretrained here. Their text holds English problems with worked solutions.",
    "Stage I replays worked solutions, a fifth of its examples; without them arithmetic "
    "is forgotten.",
    "The prompt is short: 'Q: ...' and 'A:'. Stage I has no instruction: whatever is asked is "
    "answered by the question in English, English questions included. So a question reads the "
    "same in both stages, and stage II turns all languages at once from translating to solving.",
    "Numbers are small (at most 25), so that models of a million parameters learn to count.",
)


CONTROL = ("control", "control_response_alignment")


def get_config(arg: str = "") -> ConfigDict:
    """The recipe. `--config.fast=True` shortens every stage, to test the pipeline, not the method.

    The argument `control` (--config=configs/demo.py:control) adds a system that trains as many
    steps as stage I on text without pairs: the difference to `qalign` is the effect of the pairs.
    """
    if arg not in ("", "control"):
        raise ValueError(f"the demo's argument is 'control' or nothing, not {arg!r}")
    stages = (
        "vocabulary", "pretraining", "question_alignment", "response_alignment",
        "response_alignment_only", *(CONTROL if arg else ()), "large_pretraining", "evaluation",
    )  # fmt: skip
    config = parts.recipe(
        "demo", stages, seed=0, template="short", tokenizer="vocabulary", notes=NOTES
    )
    config.mesh = "single"  # models this small gain nothing from a second device
    config.fast = False
    fast, seed = config.get_ref("fast").to_int(), config.get_ref("seed")

    def choose(full: int, quick: int):
        return fast * (quick - full) + full

    def problems(part: str, count: int, **options) -> ConfigDict:
        return parts.source("word_problems", part=part, count=count, seed=seed, **options)

    def training(init: str, data: dict, steps: int, lr: float, **changes) -> ConfigDict:
        return parts.training(
            init, data, steps=choose(steps, steps // 30), lr=lr, length=144, rows=2, b2=0.98,
            save_every=1000, **changes,
        )  # fmt: skip

    documents = problems("pretraining", 24_000)
    pairs = problems("question_pairs", 10_000)
    copies = problems("copies", 2_000)
    replay = problems("pretraining", 3_300, english=1.0, prompted=False)
    answers = problems("responses", 4_000)

    config.vocabulary = parts.tokenizer(
        1024,
        {
            "documents": problems("pretraining", 12_000),
            "pairs": problems("question_pairs", 1_500),
            "answers": problems("responses", 1_500),
        },
        symbols=tuple(f" {number}" for number in range(26)),
    )
    config.pretraining = training(
        "random", {"documents": documents}, 2600, 3e-3, preset="demo_small"
    )
    config.question_alignment = training(
        "pretraining", {"pairs": pairs, "copies": copies, "replay": replay}, 2600, 2e-3
    )
    config.response_alignment = training("question_alignment", {"answers": answers}, 500, 1e-3)
    config.response_alignment_only = training("pretraining", {"answers": answers}, 500, 1e-3)
    config.large_pretraining = training(
        "random", {"documents": problems("pretraining", 24_000, english=0.9)}, 1300, 3e-3,
        preset="demo_large",
    )  # fmt: skip
    config.control = training(
        "pretraining", {"unpaired": problems("control", 10_000), "replay": replay}, 2600, 2e-3
    )
    config.control_response_alignment = training("control", {"answers": answers}, 500, 1e-3)

    systems = {
        "base": parts.system("pretraining"),
        "ralign": parts.system("response_alignment_only"),
        "qalign": parts.system("response_alignment"),
        "large": parts.system("large_pretraining"),
        "large_proxy": parts.system(
            "large_pretraining", expert="response_alignment", antiexpert="pretraining"
        ),
    }
    if arg:
        systems["control"] = parts.system("control_response_alignment")
    config.evaluation = parts.evaluation(
        systems,
        benchmarks={
            "word_problems": parts.benchmark(
                part="test", count=choose(100, 10), seed=seed, max_new_tokens=64
            )
        },
        dtype="float32",
        slots=128,
        numbers_only=answers,
    )
    return config
