"""The demo's generated word problems: held-out numbers, the same problems in six languages."""

from qalign_jax.data.datasets import word_problems
from qalign_jax.evaluation.benchmarks.base import Benchmark

LANGUAGES = ("de", "es", "fr", "sw", "zh", "en")

BENCHMARK = Benchmark(
    name="word_problems",
    languages=LANGUAGES,
    averaged=LANGUAGES,
    max_new_tokens=64,
    builder=word_problems.BUILDER,
)
