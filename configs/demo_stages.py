"""What the demo's recipes share: the run, its `fast` switch, and training of tiny models."""

from ml_collections import ConfigDict

from qalign_jax.recipe import parts


def recipe(name: str, stages: tuple[str, ...], notes: tuple[str, ...]) -> ConfigDict:
    """A recipe of tiny models on one device; `fast` shortens every stage, to test the pipeline."""
    config = parts.recipe(
        name, stages, seed=0, template="short", tokenizer="vocabulary", notes=notes
    )
    config.mesh = "single"  # models this small gain nothing from a second device
    config.fast = False
    return config


def choose(config: ConfigDict, full: int, quick: int):
    """A reference to `full`, or `quick` where the recipe is fast."""
    return config.get_ref("fast").to_int() * (quick - full) + full


def training(
    config: ConfigDict, init: str, data: dict, steps: int, lr: float, **changes
) -> ConfigDict:
    """A stage of short rows and few steps."""
    values = {"length": 144, "rows": 2, "b2": 0.98, "save_every": 1000, **changes}
    steps = choose(config, steps, max(2, steps // 100))
    return parts.training(init, data, steps=steps, lr=lr, **values)


def add_training(
    config: ConfigDict,
    documents: ConfigDict,
    translations: dict[str, ConfigDict],
    answers: ConfigDict,
    steps: tuple[int, int, int] = (2600, 2600, 500),
    lr: tuple[float, float, float] = (3e-3, 2e-3, 1e-3),
    weight_decay: tuple[float, float] = (0.0, 0.0),
) -> None:
    """Pretraining, the two stages, and stage II alone; steps and lr are of the first three."""
    config.pretraining = training(
        config, "random", {"documents": documents}, steps[0], lr[0], preset="demo_small",
        weight_decay=weight_decay[0],
    )  # fmt: skip
    config.question_alignment = training(
        config, "pretraining", translations, steps[1], lr[1], weight_decay=weight_decay[1]
    )
    for name, init in (
        ("response_alignment", "question_alignment"),
        ("response_alignment_only", "pretraining"),
    ):
        config[name] = training(config, init, {"answers": answers}, steps[2], lr[2])


def systems() -> dict[str, ConfigDict]:
    """The untuned model, the paper's baseline, and both stages."""
    return {
        "base": parts.system("pretraining"),
        "ralign": parts.system("response_alignment_only"),
        "qalign": parts.system("response_alignment"),
    }


def problems(config: ConfigDict, part: str, count: int, **options) -> ConfigDict:
    """Generated word problems (data/datasets/word_problems.py) of the recipe's seed."""
    count = choose(config, count, count // 5)
    return parts.source(
        "word_problems", part=part, count=count, seed=config.get_ref("seed"), **options
    )
