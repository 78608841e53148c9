"""A recipe of seconds, for tests/test_storage.py and tests/test_lock.py."""

from qalign_jax.configs import demo_stages
from qalign_jax.recipe import parts


def get_config(cache_dir: str):
    config = demo_stages.recipe("small", ("vocabulary", "tuned", "evaluation"), ())
    config.cache_dir = cache_dir
    documents = demo_stages.problems(config, "pretraining", 60)
    config.vocabulary = parts.tokenizer(500, {"documents": documents})
    config.tuned = parts.training(
        "random", {"documents": documents}, preset="tiny", length=256, rows=2, steps=6,
        save_every=2, lr=1e-3,
    )  # fmt: skip
    config.evaluation = parts.evaluation(
        {"tuned": parts.system("tuned")},
        {"word_problems": parts.benchmark(part="test", count=4, seed=0, max_new_tokens=8,
                                          languages=("en", "de"))},
        dtype="float32", slots=8,
    )  # fmt: skip
    return config
