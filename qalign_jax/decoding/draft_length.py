"""How many tokens a round drafts: by a roofline of its passes, and by how many drafts were kept.

A round of k drafts takes k + 1 passes of the expert, or k of another draft, and one pass of the
other models over k + 1 tokens. Its time is modelled from the published peaks of the devices, so
that runs of one recipe draft alike on any day and in every process. A step costs as much whether
its rows are active or idle: what counts is how many rows there are, not how many still decode.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp

from qalign_jax.decoding.plan import EXPERT, LOOKUP, MODEL, Plan
from qalign_jax.decoding.speculative import Drafted
from qalign_jax.models.llama import Llama
from qalign_jax.models.quantization import INT8
from qalign_jax.parallel.chips import peaks
from qalign_jax.parallel.mesh import batch_shards

AUTO = "auto"
MOST = 16
LENGTHS = (0, 1, 2, 3, 4, 6, 8)  # among which "auto" chooses: a program is compiled for each
# The share of drafts that is taken to be kept at first, and how many comparisons that weighs.
_KEPT, _KEPT_OF_LOOKUP, _COUNTS = 0.85, 0.3, 16
_FADES = 0.9  # the weight of earlier comparisons, by call
_GAIN = 0.1  # of speed, for which another program is compiled
# TFLOP/s and GB/s: of an accelerator in no table, and of two cores of a CPU (measured), which does
# not compute while it waits for memory.
_UNKNOWN, _CPU = (300.0, 2000.0), (0.18, 12.0)


def check_draft_tokens(value: int | str) -> int | None:
    """The number of drafts of every round, None where it is "auto".

    Args:
      value: "auto" or a whole number, perhaps as text.

    Raises:
      ValueError: it is neither, or above MOST.
    """
    if value == AUTO:
        return None
    if isinstance(value, str) and re.fullmatch("[0-9]{1,2}", value):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MOST:
        given = value if isinstance(value, int) else repr(value)[:40]
        if isinstance(value, int) and abs(value) > 10**9:
            given = "a huge number"
        raise ValueError(
            f"draft_tokens={given}: expected auto, or a whole number from 0 (plain decoding) to "
            f"{MOST}"
        )
    return value


def named_kind(draft: Any) -> str:
    """MODEL for a model, in whatever form it is given; LOOKUP, or "" for None.

    Raises:
      ValueError: another text.
    """
    if draft is None or draft == "":
        return ""
    if isinstance(draft, str) and draft != LOOKUP:
        raise ValueError(f"draft={draft!r}: expected a model, or {LOOKUP}")
    return LOOKUP if isinstance(draft, str) else MODEL


def draft_kind(draft: str, targets: int, draft_tokens: int | None) -> str:
    """What drafts tokens, as a plan has it (plan.py).

    Args:
      draft: MODEL, LOOKUP, or "" for the expert, where there is one.
      targets: how many models choose the tokens, 3 in proxy-tuning.
      draft_tokens: as `check_draft_tokens` returns it.

    Raises:
      ValueError: `draft_tokens` where nothing drafts.
    """
    if not draft and targets == 1:
        if draft_tokens:
            raise ValueError(
                f"draft_tokens={draft_tokens} without a draft: name a model, or {LOOKUP}; without "
                "an expert nothing drafts by default"
            )
        return ""
    return "" if draft_tokens == 0 else draft or EXPERT


class DraftLength:
    """Chooses the drafts of the next rounds."""

    def __init__(self, plan: Plan, fixed: int | None = None):
        """With `fixed` every round has as many; a plan without a draft has none."""
        self._plan = plan
        self._fixed = fixed if plan.draft else 0
        self._length: int | None = None
        self._kept, self._compared = 0.0, 0.0

    @property
    def acceptance(self) -> float:
        """The share of drafts that is kept, by the latest rounds."""
        before = _KEPT_OF_LOOKUP if self._plan.draft == LOOKUP else _KEPT
        return (self._kept + before * _COUNTS) / (self._compared + _COUNTS)

    def next(self, read: int) -> int:
        """Drafts a round, where the longest row has this many tokens."""
        if self._fixed is not None:
            return self._fixed
        seconds = _token_seconds(self._plan, read, self.acceptance)
        best = min(seconds, key=seconds.__getitem__)
        if self._length is None or seconds[best] * (1 + _GAIN) < seconds[self._length]:
            self._length = best
        return self._length

    def add(self, drafted: Drafted) -> None:
        """Counts what a call drafted, of all rows."""
        self._kept = self._kept * _FADES + float(drafted.kept)
        self._compared = self._compared * _FADES + float(drafted.compared)


def best_length(plan: Plan, read: int, acceptance: float) -> int:
    """The drafts of a round that are fastest where so many are kept; arguments as below."""
    seconds = _token_seconds(plan, read, acceptance)
    return min(seconds, key=seconds.__getitem__)


def _token_seconds(plan: Plan, read: int, acceptance: float) -> dict[int, float]:
    """Modelled seconds of a token by the drafts of a round."""
    return {
        length: round_seconds(plan, length, read) / expected_tokens(length, acceptance)
        for length in LENGTHS
    }


def expected_tokens(drafts: int, acceptance: float) -> float:
    """Tokens of a round, where each draft is kept with this probability if those before it are."""
    return float(sum(acceptance**place for place in range(drafts + 1)))


def passes_of(plan: Plan, drafts: int) -> list[tuple[int, int]]:
    """How many passes of each model a round has, and over how many tokens a row."""
    passes = [(1, drafts + 1)] * len(plan.models)
    if plan.drafting is not None:
        # an expert's last pass gives its logits at the last draft, another model's is left out
        passes[plan.drafting] = max(drafts, 1) if plan.draft == MODEL else drafts + 1, 1
    return passes


def round_seconds(plan: Plan, drafts: int, read: int) -> float:
    """Modelled seconds of a round, of rows with `read` tokens."""
    passes, seconds = passes_of(plan, drafts), 0.0
    for (model, count), first, held in zip(plan.groups, plan.firsts, plan.held, strict=True):
        times, tokens = passes[first]
        seconds += times * _pass_seconds(plan, model, count, held or 1, tokens, read)
    return seconds


def _pass_seconds(plan: Plan, model: Llama, count: int, held: int, tokens: int, read: int) -> float:
    """Modelled seconds of one pass over so many tokens a row, on the devices of the plan.

    Args:
      count: models of the group; held: how many of them have weights of their own.
    """
    config, mesh = model.config, plan.mesh
    device = mesh.devices.flat[0] if mesh else jax.devices()[0]
    on_cpu = device.platform == "cpu"
    tflops, gb_s = _CPU if on_cpu else peaks(device.device_kind) or _UNKNOWN
    tensor = mesh.shape["tensor"] if mesh else 1
    rows = count * plan.slots / (batch_shards(mesh) if mesh else 1)
    width = jnp.dtype(model.execution.dtype).itemsize
    matrices = config.num_parameters - (0 if config.tied else config.vocab_size * config.d_model)
    heads = config.n_kv_heads * config.head_size
    cached = 2 * config.n_layers * heads * read * rows
    moved = held * matrices * (1 if plan.weights_dtype == INT8 else width)
    moved += cached * (1 if plan.cache_dtype == INT8 else width)
    flops = 2 * rows * tokens * matrices
    flops += 4 * rows * tokens * config.n_layers * config.n_heads * config.head_size * read
    seconds = moved / (gb_s * 1e9) / tensor, flops / (tflops * 1e12) / tensor
    return sum(seconds) if on_cpu else max(seconds)
