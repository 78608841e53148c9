"""The engine against `transformers`' own generation, in float32 with the same random weights."""

import collections
import dataclasses
import functools

import jax
import numpy as np
import pytest
import torch

from qalign_jax.decoding import engine, plan, requests
from qalign_jax.decoding.combine import FirstModel
from qalign_jax.decoding.engine import STEPS_PER_CALL_IN_STREAMS, Engine
from qalign_jax.decoding.sampling import Sampling
from qalign_jax.decoding.slots import advance, empty_slots
from qalign_jax.models.cache import cache_axes
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
    made = Engine([(Llama(config, F32), params_of(config))], eos_ids=eos_ids, **options)
    prompts = prompts_of(LENGTHS) if prompts is None else prompts
    answers = list(made.generate(prompts, new))
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


@pytest.mark.slow
@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("name", ["grouped-query", "sliding-window"])
def test_prompts_read_in_parts_have_the_same_answers(name, apart, monkeypatch):
    monkeypatch.setattr(plan, "PREFILL_PART", 32)
    assert decode(VARIANTS[name], slots=3, apart=apart) == reference(name)


@pytest.mark.parametrize("apart", [True, False])
def test_a_step_reads_as_much_of_the_caches_as_the_longest_row_has(apart, monkeypatch):
    monkeypatch.setattr(plan, "LEAST_ROOM", 32)
    rooms = []

    class Noted(requests.Rows):
        def next_rounds(self, steps, drafts):
            found = super().next_rounds(steps, drafts)
            rooms.append(found[0])
            return found

    monkeypatch.setattr(engine, "Rows", Noted)
    answers = decode(slots=1, apart=apart)
    assert answers == reference("multi-head")
    assert max(rooms) >= max(LENGTHS) + NEW and min(rooms) == 32 and len(set(rooms)) > 3


@pytest.mark.slow
@pytest.mark.parametrize("apart", [True, False])
def test_a_prefix_of_all_prompts_is_read_once(apart):
    prefix, *tails = prompts_of((70, 1, 40, 9, 9))
    prompts = [prefix + tail for tail in tails]
    alone = [decode(prompts=[prompt], slots=2, apart=apart)[0] for prompt in prompts]
    assert decode(prompts=prompts, slots=2, apart=apart) == alone
    asked = [requests.Request(number, prompt, NEW) for number, prompt in enumerate(prompts)]
    assert requests.common_prefix(asked) == prefix[:64]
    assert requests.common_prefix(asked[:1]) == []
    # of equal prompts a token is left to read
    assert requests.common_prefix([requests.Request(0, prefix[:64], NEW)] * 2) == prefix[:32]


def test_rows_that_decode_wait_for_one_part_of_a_prompt_at_a_time(monkeypatch):
    monkeypatch.setattr(plan, "PREFILL_PART", 32)
    made = plan.make_plan((Llama(TINY, F32),), Sampling(), None, 2)
    made = plan.with_room(made, TINY.max_length)
    long, short = prompts_of((100, 5))
    asked = [requests.Request(0, short, NEW), requests.Request(1, long, NEW)]
    rows = requests.Rows(made, 0, asked)
    first = list(rows.parts())  # nothing decodes yet: all is read
    assert [(start, part["lengths"].tolist()) for start, part in first] == [
        (0, [5]), (0, [32]), (32, [32]), (64, [32]), (96, [4])
    ]  # fmt: skip
    assert [int(part["limits"][0] > 0) for _, part in first] == [1, 0, 0, 0, 1]
    assert rows.take(0, [], active=False) == []  # ends at once
    rows.wait_in_front(requests.Request(2, long, NEW))
    for start in (0, 32, 64):
        assert [part[0] for part in rows.parts()] == [start]
        assert rows.next_rounds(64, 0)[1:] == (0, requests.STEPS_BETWEEN_PREFILLS)
    assert [part[0] for part in rows.parts()] == [96]
    assert rows.next_rounds(64, 0)[1:] == (0, 64)


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
    made = Engine([(Llama(TINY, F32), params_of(TINY))], eos_ids=(eos,), slots=3)
    # the one-token prompt is the last to get a slot
    answers = list(made.generate([prompts[i] for i in (full, full, short, 0)], NEW))
    assert answers[0][:2] == (2, reference("multi-head", eos)[short])
    assert sorted(answers)[3][:2] == (3, reference("multi-head", eos)[0])


@pytest.mark.slow
@pytest.mark.parametrize("apart", [True, False])
def test_a_mesh_changes_no_answer(apart):
    config = VARIANTS["grouped-query"]
    mesh = make_mesh("fsdp:4,tensor:2")
    made = Engine(
        [(Llama(config, F32), params_of(config))], eos_ids=(NEVER,), mesh=mesh, slots=6, apart=apart
    )
    kept = [1, 4, 5, 8, 9]  # one bucket is enough here
    state, _ = advance(*_waiting(made), 0, 2)
    values = state.caches[0][0].values if apart else state.caches[0].values
    axes = cache_axes(config, apart).values
    local = dict(zip(axes, values.sharding.shard_shape(values.shape)[-4:], strict=True))
    assert values.shape[-4] == 8  # rounded up to the batch shards
    assert local == {"batch": 2, "kv_heads": 1, "length": 64, "head_size": config.head_size}
    assert state.text.sharding.is_fully_replicated
    prompts = prompts_of(LENGTHS)
    answers = made.generate([prompts[i] for i in kept], NEW, kept)
    assert {answer.number: answer.tokens for answer in answers} == {
        i: reference("grouped-query")[i] for i in kept
    }


def _waiting(made):
    plan = dataclasses.replace(made._plan, length=64)
    eos_ids = np.array([NEVER], np.int32)
    return (
        plan,
        plan.length,
        0,
        made._params,
        FirstModel(),
        jax.random.key(0),
        eos_ids,
        empty_slots(plan),
    )


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
    made = Engine(
        [(Llama(TINY, F32), params_of(TINY))], eos_ids=(NEVER,), sampling=SAMPLING, slots=3
    )
    later = made.generate(prompts_of(LENGTHS)[4:], NEW, range(4, len(LENGTHS)))
    assert [answer.tokens for answer in sorted(later)] == answers[4:]


def test_the_same_prompt_twice_is_sampled_twice():
    prompt = prompts_of((12,))[0]
    first, second = decode(prompts=[prompt, prompt], slots=3, sampling=SAMPLING)
    assert first != second


def test_no_prompts_give_no_answers():
    assert decode(prompts=[]) == []


def test_a_stream_has_the_tokens_of_the_answers_as_they_come():
    eos = some_eos(reference("multi-head"))
    made = Engine([(Llama(TINY, F32), params_of(TINY))], eos_ids=(eos,), slots=3)
    parts, ended, lengths = collections.defaultdict(list), {}, set()
    for number, tokens, answer in made.stream(prompts_of(LENGTHS), NEW):
        assert number not in ended  # nothing comes behind an answer
        parts[number] += tokens
        lengths.add(len(tokens))
        if answer:
            ended[number] = answer.tokens
    whole = reference("multi-head", eos)
    assert [parts[i] for i in range(len(whole))] == whole == [ended[i] for i in range(len(whole))]
    assert max(lengths) <= 1 + STEPS_PER_CALL_IN_STREAMS < NEW  # the first token is the prefill's


def test_a_stream_that_is_closed_frees_the_caches():
    made = Engine([(Llama(TINY, F32), params_of(TINY))], eos_ids=(NEVER,), slots=3)
    before = len(jax.live_arrays())
    stream = made.stream(prompts_of(LENGTHS), NEW)
    next(stream)
    assert len(jax.live_arrays()) > before
    stream.close()
    assert len(jax.live_arrays()) == before
    assert list(stream) == []


def test_prompts_are_decoded_longest_first_or_in_about_their_order():
    prompts = prompts_of((2, 3, 4, 5, 20, 21))
    made = Engine([(Llama(TINY, F32), params_of(TINY))], eos_ids=(NEVER,), slots=1)
    assert [answer.number for answer in made.generate(prompts, 2)] == [5, 4, 3, 2, 1, 0]
    in_order = made.generate(prompts, 2, in_order=True)
    assert [answer.number for answer in in_order] == [3, 2, 1, 0, 5, 4]
    ended = [event.number for event in made.stream(prompts, 2) if event.answer]
    assert ended == [3, 2, 1, 0, 5, 4]
    as_memory_holds = made.with_options(slots=0).stream(prompts, 2)
    assert sorted(event.number for event in as_memory_holds if event.answer) == [0, 1, 2, 3, 4, 5]


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
    made = Engine([(Llama(TINY, F32), params_of(TINY))], eos_ids=(NEVER,))
    with pytest.raises(ValueError, match=message):
        made.generate(prompts, new)
    with pytest.raises(ValueError, match=message):
        made.stream(prompts, new)


def test_bad_engines_are_refused():
    model = (Llama(TINY, F32), params_of(TINY))
    with pytest.raises(ValueError, match="takes 1 models, 2 were given"):
        Engine([model, model], eos_ids=(0,))
    with pytest.raises(ValueError, match="slots -1: expected at least 1, or 0"):
        Engine([model], eos_ids=(0,), slots=-1)
    odd = dataclasses.replace(TINY, n_kv_heads=1)
    with pytest.raises(ValueError, match="1 key-value heads"):
        Engine([(Llama(odd, F32), params_of(odd))], eos_ids=(0,), mesh=make_mesh("fsdp:4,tensor:2"))
