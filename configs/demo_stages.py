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
    steps = choose(config, steps, steps // 30)
    return parts.training(init, data, steps=steps, lr=lr, **values)


def problems(config: ConfigDict, part: str, count: int, **options) -> ConfigDict:
    """Generated word problems (data/datasets/word_problems.py) of the recipe's seed."""
    return parts.source(
        "word_problems", part=part, count=count, seed=config.get_ref("seed"), **options
    )
