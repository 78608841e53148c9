"""The demo of common sense without chain of thought: facts told in English, asked in six languages.

python -m qalign_jax.run --config=configs/demo.py:choice
"""

import functools

from ml_collections import ConfigDict

from qalign_jax.configs import demo_stages
from qalign_jax.data.generated.everyday_facts import words
from qalign_jax.recipe import parts

NOTES = (
    "The models are pretrained here. Only English text states facts, and it holds English "
    "questions with their answers; the facts that the test asks for stand in statements alone.",
    "An answer is the right choice in English words, not its letter: models of a million "
    "parameters do not learn in minutes to look up a letter.",
    "Stage I translates questions that nobody answers, nonsense too ('What does a knife eat?'), "
    "five of six without choices, half of them with the thing in front ('a knife: what is it?'). "
    "It holds English questions too and replays English statements. Pretraining and stage I have "
    "weight decay: without it knowledge stays with the words of one language.",
    "Stage II is 75 steps: longer, facts that it does not ask for are forgotten.",
    "The prompt is short: 'Q: ...' and 'A:'. Stage I has no instruction.",
    "Every thing and every value is one piece of the vocabulary, in each language.",
)


def get_config() -> ConfigDict:
    """The recipe. `--config.fast=True` shortens every stage, to test the pipeline alone."""
    stages = (
        "vocabulary", "pretraining", "question_alignment", "response_alignment",
        "response_alignment_only", "evaluation",
    )  # fmt: skip
    config = demo_stages.recipe("demo_choice", stages, NOTES)
    choose, training, everyday = (
        functools.partial(function, config)
        for function in (demo_stages.choose, demo_stages.training, _everyday)
    )

    pairs = everyday("question_pairs", 24_000)
    copies = everyday("copies", 5_000)
    replay = everyday("pretraining", 4_000, english=1.0, prompted=False)
    answers = everyday("responses", 4_000)

    config.vocabulary = parts.tokenizer(
        1792,
        {"documents": everyday("pretraining", 4_000), "pairs": everyday("question_pairs", 3_000)},
        symbols=words(),
    )
    config.pretraining = training(
        "random", {"documents": everyday("pretraining", 16_000)}, 4500, 3e-3,
        preset="demo_small", weight_decay=0.1,
    )  # fmt: skip
    config.question_alignment = training(
        "pretraining", {"pairs": pairs, "copies": copies, "replay": replay}, 6000, 3e-3,
        weight_decay=0.3,
    )  # fmt: skip
    config.response_alignment = training("question_alignment", {"answers": answers}, 75, 5e-4)
    config.response_alignment_only = training("pretraining", {"answers": answers}, 75, 5e-4)
    config.evaluation = parts.evaluation(
        {
            "base": parts.system("pretraining"),
            "ralign": parts.system("response_alignment_only"),
            "qalign": parts.system("response_alignment"),
        },
        benchmarks={
            "everyday": parts.benchmark(
                part="test", count=choose(100, 12), seed=config.get_ref("seed")
            )
        },
        dtype="float32",
        slots=128,
        baseline="ralign",
    )
    return config


def _everyday(config: ConfigDict, part: str, count: int, **options) -> ConfigDict:
    """Generated questions (data/datasets/everyday.py) of the recipe's seed."""
    return parts.source("everyday", part=part, count=count, seed=config.get_ref("seed"), **options)
