"""The demo's generated multiple choice: held-out facts, the same questions in six languages."""

from qalign_jax.data.datasets import everyday
from qalign_jax.data.generated.everyday_facts import LANGUAGES
from qalign_jax.evaluation.benchmarks.base import Benchmark
from qalign_jax.evaluation.protocols import choice

ORDER = (*(language for language in LANGUAGES if language != "en"), "en")

BENCHMARK = Benchmark(
    name="everyday",
    languages=ORDER,
    averaged=ORDER,
    max_new_tokens=8,
    builder=everyday.BUILDER,
    protocol=choice,
)
