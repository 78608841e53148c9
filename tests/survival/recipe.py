"""A recipe of seconds, with many saves and many answers, for runs that are killed."""

from qalign_jax.recipe import parts


def get_config():
    config = parts.recipe(
        "survival", ("vocabulary", "base", "tuned", "evaluation"),
        seed=3, template="short", tokenizer="vocabulary", mesh="single",
    )  # fmt: skip

    def problems(part, count):
        return {"problems": parts.source("word_problems", part=part, count=count)}

    config.vocabulary = parts.tokenizer(500, problems("pretraining", 400))
    quick = dict(length=96, rows=4, lr=3e-3, save_every=5)
    config.base = parts.training(
        "random", problems("pretraining", 200), preset="tiny", steps=60, **quick
    )
    adapter = {"rank": 4, "dropout": 0.1}
    config.tuned = parts.training(
        "base", problems("responses", 100), steps=30, adapter=adapter, weights_dtype="int8", **quick
    )
    config.evaluation = parts.evaluation(
        systems={name: parts.system(name) for name in ("base", "tuned")},
        benchmarks={"word_problems": parts.benchmark(part="test", count=20, max_new_tokens=12)},
        dtype="float32",
        slots=2,
    )
    return config
