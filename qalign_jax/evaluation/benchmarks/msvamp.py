"""mSVAMP (arXiv 2310.20246): 1,000 one- and two-step problems in each of the paper's languages."""

from qalign_jax.evaluation.benchmarks.base import Benchmark
from qalign_jax.evaluation.benchmarks.mgsm import PAPER_LANGUAGES

BENCHMARK = Benchmark(
    name="msvamp",
    languages=PAPER_LANGUAGES,
    averaged=PAPER_LANGUAGES,
    max_new_tokens=300,
)
