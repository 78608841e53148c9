"""How many slots are decoded, by what memory holds and how many prompts there are."""

import dataclasses

import jax
import pytest

from qalign_jax.ahead.jobs import DecodingJob
from qalign_jax.decoding.engine import Engine
from qalign_jax.decoding.memory import MOST_SLOTS, free_bytes, with_slots
from qalign_jax.decoding.plan import make_plan, with_room
from qalign_jax.decoding.sampling import Sampling
from qalign_jax.models.config import Execution, LlamaConfig
from qalign_jax.models.llama import Llama
from qalign_jax.models.params import init_params
from qalign_jax.models.presets import preset
from qalign_jax.parallel.chips import parse_slice
from qalign_jax.parallel.mesh import make_mesh

CONFIG = LlamaConfig(
    vocab_size=97, d_model=16, n_layers=2, n_heads=2, n_kv_heads=2, d_ff=32, head_size=8
)
MODEL = Llama(CONFIG, Execution(dtype="float32"))
# keys and values of 128 tokens in f32, and their ids
ROW = 2 * 2 * 128 * 2 * 8 * 4 + 128 * 4


def plan_of(slots, mesh=None, **options):
    return with_room(make_plan((MODEL,), Sampling(), mesh, slots, **options), 128)


@pytest.mark.parametrize(
    ("slots", "prompts", "rows", "expected"),
    [
        (0, 1000, None, MOST_SLOTS),
        (0, 1000, 21, 16),
        (0, 5, 21, 8),
        (16, 1000, 21, 16),
        (16, 3, 5, 4),
        (5, 1000, 5, 5),
        (1, 1, 1, 1),
    ],
)
def test_slots_are_those_asked_for_or_what_memory_holds(slots, prompts, rows, expected):
    free = None if rows is None else int(rows * ROW / 0.9) + 1
    assert with_slots(plan_of(slots), prompts, free).slots == expected


def test_a_mesh_holds_more_and_int8_caches_do():
    free = int(4 * ROW / 0.9) + 1
    assert with_slots(plan_of(0), 100, free).slots == 4
    split = with_slots(plan_of(0, make_mesh("fsdp:4,tensor:2")), 100, free)
    assert split.slots == 16 and split.slots % 4 == 0  # of 4 parts; ids are whole on every device
    # a value of int8 and a scale for 8 of them, in place of 4 bytes
    assert with_slots(plan_of(0, cache_dtype="int8"), 100, free).slots == 8


def test_slots_that_memory_does_not_hold_are_refused_with_what_fits():
    free = int(5 * ROW / 0.9) + 1
    with pytest.raises(ValueError, match=r"of 16 slots with 128 tokens .*; 5 fit: give slots=5"):
        with_slots(plan_of(16), 1000, free)
    with pytest.raises(ValueError, match="none fits; take cache_dtype=int8"):
        with_slots(plan_of(0), 1000, 1000)
    available = free_bytes(plan_of(1))
    assert available and 1 << 20 < available < 1 << 50
    long = Llama(LlamaConfig(**{**vars(CONFIG), "max_length": 10**7}), MODEL.execution)
    engine = Engine([(long, init_params(CONFIG, jax.random.key(0)))], eos_ids=(1,), slots=1024)
    with pytest.raises(ValueError, match=r"GiB beside the weights; .* fit"):
        engine.generate([[1]] * 1024, 10**6)


def test_fits_takes_the_slots_that_a_device_holds():
    chip = parse_slice("v5e:1x1")
    job = DecodingJob((Llama(*preset("tinyllama_1b")),), "tensor:1", 0, 512, 600)
    slots = job.asked(chip)["slots"]
    # a row of 1,152 tokens: 22 layers, keys and values, 4 heads of 64 in bf16
    assert slots == MOST_SLOTS and slots * 1152 * 22 * 2 * 4 * 64 * 2 < 13 * 2**30
    large = dataclasses.replace(job, models=(Llama(*preset("llama2_7b")),))
    assert large.asked(chip)["slots"] == 4 and large.asked(parse_slice("v6e:1x1"))["slots"] == 16
    int8 = dataclasses.replace(large, weights_dtype="int8", cache_dtype="int8")
    assert int8.asked(chip)["slots"] == 16
    assert dataclasses.replace(large, mesh="tensor:1", slots=5).asked(chip)["slots"] == 5
