"""The demo's method for reasoning with executable code: English solutions are programs.

python -m qalign_jax.run --config=configs/demo.py:code

A solution has the format of OpenMathInstruct-1. The evaluation runs its code in the sandbox while
it is decoded and goes on behind the output.
"""

import functools

from ml_collections import ConfigDict

from qalign_jax.configs import demo_stages
from qalign_jax.recipe import parts

NOTES = (
    "The models are pretrained here. Their text holds English problems with worked solutions, "
    "which are programs with their output.",
    "A solution retells the story before its one program. The output's tokens are trained too.",
    "Stage I replays worked solutions, a fifth of its examples.",
    "The prompt is short: 'Q: ...' and 'A:'. Stage I has no instruction: whatever is asked is "
    "answered by the question in English, English questions included.",
    "The vocabulary has pieces for the tags. Numbers are small (at most 25), as in the demo, so "
    "that the two compare.",
)
TAGS = ("<llm-code>", "</llm-code>", "<llm-code-output>", "</llm-code-output>", "\\boxed{")


def get_config() -> ConfigDict:
    """The recipe. `--config.fast=True` shortens every stage: it tests the pipeline only."""
    stages = (
        "vocabulary", "pretraining", "question_alignment", "response_alignment",
        "response_alignment_only", "evaluation",
    )  # fmt: skip
    config = demo_stages.recipe("demo_code", stages, NOTES)
    problems = functools.partial(demo_stages.problems, config)

    pairs = problems("question_pairs", 10_000)
    copies = problems("copies", 2_000)
    replay = problems("code_pretraining", 3_300, english=1.0, prompted=False)
    answers = problems("code_responses", 4_000)

    config.vocabulary = parts.tokenizer(
        1024,
        {
            "documents": problems("code_pretraining", 12_000),
            "pairs": problems("question_pairs", 1_500),
            "answers": problems("code_responses", 1_500),
        },
        symbols=(*(f" {number}" for number in range(26)), *TAGS),
    )
    documents = problems("code_pretraining", 24_000)
    translations = {"pairs": pairs, "copies": copies, "replay": replay}
    demo_stages.add_training(config, documents, translations, answers, lr=(3e-3, 2e-3, 2e-3))
    config.evaluation = parts.evaluation(
        demo_stages.systems(),
        benchmarks={
            "word_problems": parts.benchmark(
                protocol="code",
                part="test",
                count=demo_stages.choose(config, 100, 4),
                seed=config.get_ref("seed"),
                max_new_tokens=64,
            )
        },
        dtype="float32",
        slots=128,
        baseline="ralign",
        numbers_only=answers,
    )
    return config
