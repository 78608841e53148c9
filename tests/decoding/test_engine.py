"""The engine against `transformers`' own generation, in float32 with the same random weights."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import torch

from qalign_jax.decoding.engine import Engine
from qalign_jax.decoding.sampling import Sampling
from qalign_jax.decoding.slots import advance, empty_slots
from qalign_jax.models.config import Execution, LlamaConfig
from qalign_jax.models.llama import Llama
from qalign_jax.models.params import init_params
from qalign_jax.parallel.mesh import make_mesh
from tests.reference import to_transformers

TINY = LlamaConfig(
    vocab_size=97,
    d_model=48,
    n_layers=2,
    n_heads=4,
    n_kv_heads=4,
    d_ff=96,
    head_size=12,
    max_length=160,
    init_scale=0.3,
)
F32 = Execution(dtype="float32")
VARIANTS = {
    "multi-head": TINY,
    "grouped-query": dataclasses.replace(TINY, n_kv_heads=2),
    "sliding-window": dataclasses.replace(TINY, n_kv_heads=2, sliding_window=9),
}
# few buckets of very different lengths: a program is compiled for each
LENGTHS = (1, 100, 2, 60, 16, 5, 120, 50, 3, 11)
NEVER = 10_000  # an EOS id outside every vocabulary
NEW = 24


@functools.cache
def params_of(config, seed=0):
    return init_params(config, jax.random.key(seed))


def prompts_of(lengths, vocab_size=TINY.vocab_size):
    rng = np.random.default_rng(7)
    return [rng.integers(0, vocab_size, length).tolist() for length in lengths]


def decode(config=TINY, prompts=None, new=NEW, eos_ids=(NEVER,), **options):
    engine = Engine([(Llama(config, F32), params_of(config))], eos_ids=eos_ids, **options)
    prompts = prompts_of(LENGTHS) if prompts is None else prompts
    answers = list(engine.generate(prompts, new))
    assert sorted(answer.number for answer in answers) == list(range(len(prompts)))
    return [answer.tokens for answer in sorted(answers)]


@functools.cache
def reference(name, eos=None):
    model = to_transformers(VARIANTS[name], params_of(VARIANTS[name]))
    answers = []
    for prompt in prompts_of(LENGTHS):
        ids = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=NEW,
            do_sample=False,
            eos_token_id=eos,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        answers.append(ids[:-1] if ids[-1] == eos else ids)
    return answers


def some_eos(answers):
    """An id that ends about half of the answers early."""
    counts = {id: sum(id in answer for answer in answers) for id in range(TINY.vocab_size)}
    return min(counts, key=lambda id: abs(counts[id] - len(answers) // 2))


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_greedy_tokens_are_those_of_transformers(name):
    assert decode(VARIANTS[name], slots=3) == reference(name)


@pytest.mark.parametrize("name", VARIANTS)
def test_answers_end_before_eos_as_in_transformers(name):
    eos = some_eos(reference(name))
    expected = reference(name, eos)
    lengths = {len(answer) for answer in expected}
    assert NEW in lengths and len(lengths) > 2  # some answers end early, at different lengths
    assert decode(VARIANTS[name], eos_ids=(eos,), slots=3) == expected


def test_any_of_several_eos_ids_ends_an_answer():
    whole = reference("multi-head")
    first, second = whole[0][3], whole[1][2]
    expected = []
    for answer in whole:
        ends = [answer.index(id) for id in (first, second) if id in answer]
        expected.append(answer[: min(ends, default=NEW)])
    assert decode(eos_ids=(first, second), slots=3) == expected


@pytest.mark.parametrize("slots", [1, 16])
def test_slots_change_no_answer(slots):
    assert decode(slots=slots) == reference("multi-head")


def test_a_reused_slot_sees_nothing_of_the_row_before():
    long, short = prompts_of((120, 4))
    together = decode(prompts=[long, short, long[:50], short], slots=1)
    assert together[1] == together[3] == decode(prompts=[short], slots=1)[0]
    assert together[2] == decode(prompts=[long[:50]], slots=1)[0]


def test_a_row_that_finishes_gives_way_while_others_go_on():
    eos = some_eos(reference("multi-head"))
    lengths = [len(answer) for answer in reference("multi-head", eos)]
    short, full = lengths.index(min(lengths)), lengths.index(NEW)
    prompts = prompts_of(LENGTHS)
    engine = Engine([(Llama(TINY, F32), params_of(TINY))], eos_ids=(eos,), slots=3)
    # the one-token prompt is the last to get a slot
    answers = list(engine.generate([prompts[i] for i in (full, full, short, 0)], NEW))
    assert answers[0][:2] == (2, reference("multi-head", eos)[short])
    assert sorted(answers)[3][:2] == (3, reference("multi-head", eos)[0])


@pytest.mark.slow
def test_a_mesh_changes_no_answer():
    config = VARIANTS["grouped-query"]
    mesh = make_mesh("fsdp:4,tensor:2")
    engine = Engine([(Llama(config, F32), params_of(config))], eos_ids=(NEVER,), mesh=mesh, slots=6)
    kept = [1, 4, 5, 8, 9]  # one bucket is enough here
    state, _ = advance(*_waiting(engine), 0, 2)
    assert state.caches[0][0].shape[1] == 8  # rounded up to the batch shards
    assert state.caches[0][0].sharding.shard_shape(state.caches[0][0].shape)[1:4] == (2, 1, 64)
    assert state.outputs.sharding.is_fully_replicated
    prompts = prompts_of(LENGTHS)
    answers = engine.generate([prompts[i] for i in kept], NEW, kept)
    assert {answer.number: answer.tokens for answer in answers} == {
        i: reference("grouped-query")[i] for i in kept
    }


def _waiting(engine):
    plan = dataclasses.replace(engine._plan, length=64)
    eos_ids = np.array([NEVER], np.int32)
    return plan, engine._params, jax.random.key(0), eos_ids, empty_slots(plan)


def test_the_state_is_donated():
    arguments = _waiting(Engine([(Llama(TINY, F32), params_of(TINY))], eos_ids=(NEVER,), slots=3))
    advance(*arguments, 0, 2)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(arguments[-1].caches))


def test_engines_of_equal_models_share_programs():
    decode(slots=3)
    before = advance._cache_size()
    params = params_of(TINY, seed=1)
    list(
        Engine([(Llama(TINY, F32), params)], eos_ids=(NEVER,), slots=3).generate(
            prompts_of(LENGTHS), NEW
        )
    )
    assert advance._cache_size() == before


def test_a_prompt_near_the_length_limit_gets_what_room_is_left():
    prompt = prompts_of((TINY.max_length - 5,))[0]
    answers = decode(prompts=[prompt, prompt[:100]], new=NEW, slots=3)
    assert [len(answer) for answer in answers] == [5, NEW]
    assert answers[0] == decode(prompts=[prompt], new=5, slots=3)[0]


SAMPLING = Sampling(temperature=1.3, top_p=0.9, seed=5)


@pytest.mark.slow
def test_samples_depend_on_the_seed_and_the_request_alone():
    answers = decode(slots=3, sampling=SAMPLING)
    assert answers == decode(slots=3, sampling=SAMPLING)
    assert answers == decode(slots=16, sampling=SAMPLING)
    assert answers != decode(slots=3, sampling=dataclasses.replace(SAMPLING, seed=6))


def test_a_part_decoded_later_samples_the_same():
    answers = decode(slots=3, sampling=SAMPLING)
    engine = Engine(
        [(Llama(TINY, F32), params_of(TINY))], eos_ids=(NEVER,), sampling=SAMPLING, slots=3
    )
    later = engine.generate(prompts_of(LENGTHS)[4:], NEW, range(4, len(LENGTHS)))
    assert [answer.tokens for answer in sorted(later)] == answers[4:]


def test_the_same_prompt_twice_is_sampled_twice():
    prompt = prompts_of((12,))[0]
    first, second = decode(prompts=[prompt, prompt], slots=3, sampling=SAMPLING)
    assert first != second


def test_no_prompts_give_no_answers():
    assert decode(prompts=[]) == []


@pytest.mark.parametrize(
    ("prompts", "new", "message"),
    [
        ([[1], []], 4, "prompt 1 is empty"),
        ([[1] * 160], 4, "prompt 0 has 160 tokens.*max_length is 160"),
        ([[1, 97]], 4, "prompt 0 has the id 97.*97 ids"),
        ([[1, -1]], 4, "prompt 0 has the id -1"),
        ([[1]], 0, "max_new_tokens 0"),
    ],
)
def test_bad_requests_are_refused_at_the_call(prompts, new, message):
    engine = Engine([(Llama(TINY, F32), params_of(TINY))], eos_ids=(NEVER,))
    with pytest.raises(ValueError, match=message):
        engine.generate(prompts, new)


def test_bad_engines_are_refused():
    model = (Llama(TINY, F32), params_of(TINY))
    with pytest.raises(ValueError, match="takes 1 models, 2 were given"):
        Engine([model, model], eos_ids=(0,))
    with pytest.raises(ValueError, match="slots 0"):
        Engine([model], eos_ids=(0,), slots=0)
    odd = dataclasses.replace(TINY, n_kv_heads=1)
    with pytest.raises(ValueError, match="1 key-value heads"):
        Engine([(Llama(odd, F32), params_of(odd))], eos_ids=(0,), mesh=make_mesh("fsdp:4,tensor:2"))
