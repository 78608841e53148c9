"""mGSM (arXiv 2210.03057): 250 grade-school problems in each of eleven languages.

The paper averages over ten of them. Telugu is reported where it is asked for, and never averaged.
"""

from qalign_jax.evaluation.benchmarks.base import Benchmark

PAPER_LANGUAGES = ("bn", "th", "sw", "ja", "zh", "de", "fr", "ru", "es", "en")

BENCHMARK = Benchmark(
    name="mgsm",
    languages=(*PAPER_LANGUAGES, "te"),
    averaged=PAPER_LANGUAGES,
    max_new_tokens=600,
)
