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
    everyday = functools.partial(_everyday, config)

    pairs = everyday("question_pairs", 24_000)
    copies = everyday("copies", 5_000)
    replay = everyday("pretraining", 4_000, english=1.0, prompted=False)
    answers = everyday("responses", 4_000)

    config.vocabulary = parts.tokenizer(
        1792,
        {"documents": everyday("pretraining", 4_000), "pairs": everyday("question_pairs", 3_000)},
        symbols=words(),
    )
    demo_stages.add_training(
        config,
        everyday("pretraining", 16_000),
        {"pairs": pairs, "copies": copies, "replay": replay},
        answers,
        steps=(4500, 6000, 75),
        lr=(3e-3, 3e-3, 5e-4),
        weight_decay=(0.1, 0.3),
    )
    config.evaluation = parts.evaluation(
        demo_stages.systems(),
        benchmarks={
            "everyday": parts.benchmark(
                part="test", count=demo_stages.choose(config, 100, 4), seed=config.get_ref("seed")
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
