"""The benchmarks by name, one file each."""

from qalign_jax.evaluation.benchmarks import mgsm, msvamp, word_problems
from qalign_jax.evaluation.benchmarks.base import Benchmark

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (mgsm.BENCHMARK, msvamp.BENCHMARK, word_problems.BENCHMARK)
}


def get(name: str) -> Benchmark:
    """The benchmark of that name; raises ValueError with the names there are."""
    if name not in BENCHMARKS:
        raise ValueError(f"unknown benchmark {name!r}; it is one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]
