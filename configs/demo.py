"""The whole recipe on a laptop CPU: tiny models, six languages, generated word problems.

python -m qalign_jax.run
"""

import functools

from ml_collections import ConfigDict

from qalign_jax.configs import demo_choice, demo_code, demo_stages
from qalign_jax.configs.demo_comparisons import COMPARISONS
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
OTHERS = {"code": demo_code.get_config, "choice": demo_choice.get_config}


def get_config(arg: str = "") -> ConfigDict:
    """The recipe. `--config.fast=True` shortens every stage, to test the pipeline, not the method.

    An argument (--config=configs/demo.py:baselines) adds stages and systems to compare with:
    control, baselines, data_scale, larger or adapter (configs/demo_comparisons.py). `code` and
    `choice` give other recipes: solutions that are programs (configs/demo_code.py), and multiple
    choice (configs/demo_choice.py).
    """
    if arg in OTHERS:
        return OTHERS[arg]()
    if arg not in ("", *COMPARISONS):
        known = ", ".join((*COMPARISONS, *OTHERS))
        raise ValueError(f"the demo's argument is one of {known}; not {arg!r}")
    stages = (
        "vocabulary", "pretraining", "question_alignment", "response_alignment",
        "response_alignment_only", "large_pretraining", "evaluation", "representations",
        "reasoning",
    )  # fmt: skip
    config = demo_stages.recipe("demo", stages, NOTES)
    choose, training, problems = (
        functools.partial(function, config)
        for function in (demo_stages.choose, demo_stages.training, demo_stages.problems)
    )

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
    translations = {"pairs": pairs, "copies": copies, "replay": replay}
    demo_stages.add_training(config, documents, translations, answers)
    config.large_pretraining = training(
        "random", {"documents": problems("pretraining", 24_000, english=0.9)}, 1300, 3e-3,
        preset="demo_large",
    )  # fmt: skip
    systems = demo_stages.systems() | {
        "large": parts.system("large_pretraining"),
        "large_proxy": parts.system(
            "large_pretraining", expert="response_alignment", antiexpert="pretraining", trace=True
        ),
    }
    questions = parts.benchmark(
        part="test", count=choose(100, 4), seed=config.get_ref("seed"), max_new_tokens=64
    )
    config.evaluation = parts.evaluation(
        systems,
        benchmarks={"word_problems": questions},
        dtype="float32",
        slots=128,
        baseline="ralign",
        numbers_only=answers,
    )
    models = {name: systems[name].model for name in ("base", "ralign", "qalign")}
    config.representations = parts.representations(
        models | {"aligned": "question_alignment"}, "word_problems", questions, dtype="float32"
    )
    config.reasoning = parts.reasoning("evaluation")
    if arg:
        COMPARISONS[arg](config)
    return config
