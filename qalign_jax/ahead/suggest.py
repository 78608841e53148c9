"""Settings that fit, on the same slice or on a larger one."""

import sys

import jax

from qalign_jax.ahead.jobs import Job, TrainingJob
from qalign_jax.models.config import REMAT_POLICIES
from qalign_jax.parallel.chips import CHIPS, GIB, Slice


def suggest(job: Job, where: Slice) -> list[dict]:
    """Settings that fit, best first: on this slice with less in memory, else on a larger one.

    On each, int8 is tried where nothing else fits.
    """
    for candidate in (where, *where.larger()):
        for again in (job, *job.smaller()):
            if again.least_bytes / candidate.size > CHIPS[candidate.chip].hbm_gib * GIB:
                continue
            others = again.alternatives(candidate)
            others = [other for other in others if (other, candidate) != (job, where)]
            found = [_attempt(other, candidate) for other in others]
            if any(found):
                return _fastest_first(found)
    return []


def sweep(job: TrainingJob, where: Slice) -> list[dict]:
    """The alternatives that fit on this slice, with every remat policy, fastest modelled first."""
    remats = tuple(name for name in REMAT_POLICIES if name != "none")
    return _fastest_first([_attempt(other, where) for other in job.alternatives(where, remats)])


def spelt(asked: dict) -> str:
    """Settings as the keys of a recipe."""
    keys = ("mesh", "remat", "micro_batches", "rows", "weights_dtype", "cache_dtype", "slots")
    return " ".join(f"{key}={asked[key]}" for key in keys if asked.get(key))


def say(text: str) -> None:
    """Progress on stderr."""
    print(text, file=sys.stderr, flush=True)


def _attempt(job: Job, where: Slice) -> dict | None:
    """The settings of a job and what it compiles to, None where it does not fit."""
    asked = job.asked(where)
    say(f"trying {where.name} {spelt(asked)}")
    try:
        found = job.compile(where)
    except (ValueError, jax.errors.JaxRuntimeError) as error:  # the compiler has bugs of its own
        say(str(error).splitlines()[0])
        return None
    largest = min(found.values(), key=lambda each: (each.fits, each.spare_bytes))
    if not largest.fits:
        say(f"does not fit: {largest.peak_bytes / GIB:.2f} GiB needed")
        return None
    return {"topology": where.name} | asked | largest.to_json()


def _fastest_first(found: list[dict | None]) -> list[dict]:
    return sorted((one for one in found if one), key=lambda one: one["modelled_step_s"])
