"""Traces against torch models that read the whole answer at once, in float32."""

import concurrent.futures
import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest
import torch

from qalign_jax.checkpoints.model import Model
from qalign_jax.decoding.combine import combination
from qalign_jax.decoding.engine import Engine
from qalign_jax.decoding.sampling import Sampling
from qalign_jax.decoding.slots import empty_slots
from qalign_jax.decoding.system import System, TextGenerator
from qalign_jax.decoding.trace import Columns, Trace
from qalign_jax.decoding.turns import Turns
from qalign_jax.models.config import Execution, LlamaConfig
from qalign_jax.models.llama import Llama
from qalign_jax.models.params import init_params
from qalign_jax.parallel.mesh import make_mesh
from tests.reference import to_transformers

SMALL = LlamaConfig(
    vocab_size=125,
    d_model=32,
    n_layers=2,
    n_heads=4,
    n_kv_heads=4,
    d_ff=64,
    head_size=8,
    max_length=192,
    init_scale=0.3,
)
# above 128 ids the padded vocabulary is another too
LARGE = dataclasses.replace(SMALL, vocab_size=131, d_model=48, n_kv_heads=2, head_size=12)
F32 = Execution(dtype="float32")
SYSTEMS = {
    "one model": (SMALL,),
    "three models": (dataclasses.replace(LARGE, vocab_size=125), SMALL, SMALL),
    "large one with more ids": (LARGE, SMALL, SMALL),
    "anti-expert with more ids": (SMALL, SMALL, LARGE),
}
ALPHA = 0.7
EOS = range(0, 125, 12)  # some answers end early
LENGTHS = (1, 40, 9, 60, 2)
NEW = 16
SAMPLED = Sampling(temperature=1.4, top_p=0.9, seed=2)


@functools.cache
def weights(configs):
    return [init_params(config, jax.random.key(i)) for i, config in enumerate(configs)]


@functools.cache
def references(configs):
    return [to_transformers(*pair) for pair in zip(configs, weights(configs), strict=True)]


def prompts():
    rng = np.random.default_rng(3)
    return [rng.integers(0, SMALL.vocab_size, length).tolist() for length in LENGTHS]


@functools.cache
def decode(name, **options):
    configs = SYSTEMS[name]
    models = [(Llama(config, F32), params) for config, params in zip(
        configs, weights(configs), strict=True
    )]  # fmt: skip
    combine = combination(len(models), ALPHA)
    engine = Engine(models, combine, **{"eos_ids": EOS, "slots": 2, **options})
    return sorted(engine.generate(prompts(), NEW), key=lambda answer: answer.number)


def expected(models, prompt, tokens, vocab_size, alpha=ALPHA):
    """The columns of tokens behind a prompt, from one pass of each model over both."""
    with torch.no_grad():
        logits = [
            model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1, :vocab_size]
            for model in models
        ]
    base = logits[0].softmax(-1)
    combined = logits[0] + alpha * (logits[1] - logits[2]) if len(logits) > 1 else logits[0]
    chosen = torch.tensor(tokens)[:, None]
    probability = combined.softmax(-1).gather(1, chosen)[:, 0]
    return {
        "base_tokens": logits[0].argmax(-1).numpy(),
        "base_probability": base.max(-1).values.numpy(),
        "probability": probability.numpy(),
        "moved": (probability - base.gather(1, chosen)[:, 0]).numpy(),
    }


def assert_equal(columns, wanted):
    assert columns["base_tokens"] == wanted["base_tokens"].tolist()
    for name in ("base_probability", "probability", "moved"):
        np.testing.assert_allclose(columns[name], wanted[name], atol=1e-5)


def lists(traced):
    return {name: column.tolist() for name, column in vars(traced).items()}


@pytest.mark.parametrize("sampling", [Sampling(), SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", SYSTEMS)
def test_columns_are_those_of_a_pass_over_the_whole_answer(name, sampling):
    answers = decode(name, sampling=sampling, trace=True)
    lengths = [len(answer.tokens) for answer in answers]
    assert len(set(lengths)) > 1
    models = references(SYSTEMS[name])
    for answer, prompt in zip(answers, prompts(), strict=True):
        wanted = expected(models, prompt, answer.tokens, SMALL.vocab_size)
        assert_equal(lists(answer.traced), wanted)
    moved = np.concatenate([answer.traced.moved for answer in answers])
    if name == "one model":
        assert not moved.any()
        if sampling != SAMPLED:
            assert all(answer.tokens == answer.traced.base_tokens.tolist() for answer in answers)
    else:
        assert np.abs(moved).max() > 0.1


@pytest.mark.parametrize("sampling", [Sampling(), SAMPLED], ids=["greedy", "sampled"])
def test_tokens_are_the_same_with_and_without_a_trace(sampling):
    name = "large one with more ids"
    traced = decode(name, sampling=sampling, trace=True)
    untraced = decode(name, sampling=sampling)
    assert [answer[:2] for answer in traced] == [answer[:2] for answer in untraced]
    assert [answer.traced for answer in untraced] == [None] * len(LENGTHS)


def test_slots_hold_no_columns_where_nothing_is_traced():
    def held(trace):
        model = (Llama(SMALL, F32), weights((SMALL,))[0])
        engine = Engine([model], eos_ids=EOS, slots=2, trace=trace)
        plan = dataclasses.replace(engine._plan, length=64)
        return jax.eval_shape(lambda: empty_slots(plan))

    untraced, traced = held(False), held(True)
    assert untraced.traced is None
    assert {column.shape for column in jax.tree.leaves(traced.traced)} == {(2, 64)}
    assert len(jax.tree.leaves(traced)) == len(jax.tree.leaves(untraced)) + 4


@pytest.mark.slow
def test_a_mesh_changes_no_trace():
    name = "large one with more ids"
    on_mesh = decode(name, mesh=make_mesh("fsdp:4,tensor:2"), slots=4, trace=True)
    for answer, alone in zip(on_mesh, decode(name, sampling=Sampling(), trace=True), strict=True):
        assert answer.tokens == alone.tokens
        assert_equal(lists(answer.traced), vars(alone.traced))


STOP = "e"
PIECES = (".", "e", "te", " ", "0", "a", "</s>")
REPLIES = 2


@pytest.fixture(scope="module")
def system(tokenizer):
    """Three models that generate PIECES, and the stop string often."""
    config = dataclasses.replace(SMALL, vocab_size=420, max_length=256)
    kept = [i for i in range(420) if tokenizer.piece(i) in PIECES]
    models = []
    for seed in range(5, 8):
        params = init_params(config, jax.random.key(seed))
        kernel = np.zeros_like(params["head"]["kernel"])
        kernel[:, kept] = params["head"]["kernel"][:, kept]
        params = params | {"head": {"kernel": kernel}}
        models.append(Model(config, F32, params, tokenizer, "short"))
    return System.of(models, ["large", "expert", "antiexpert"], ALPHA)


def reply_to(number, text):
    return f" {number} has {len(text)} "


def reply(number, text):
    told = concurrent.futures.Future()
    told.set_result(reply_to(number, text))
    return told


def split_in_turns(tokenizer, number, prompt, tokens):
    """The ids that a turn read and those that it generated, for each turn of an answer."""
    text, answer, turns, left = prompt, "", [], list(tokens)
    while left or not turns:
        read, said, told = tokenizer.encode_prompts([text])[0], [], ""
        while left and STOP not in told:
            said.append(left.pop(0))
            told = tokenizer.decode([*read, *said])[len(text) :]
        turns.append((read, said))
        answer += told if answer else told.removeprefix(" ")
        text += told + reply_to(number, answer)
        answer += reply_to(number, answer)
    return turns


def test_a_trace_goes_on_over_turns(system, tokenizer, texts):
    questions = [text[:20] for text in texts[:6]]
    turns = Turns(STOP, reply, most=REPLIES)
    answers = list(TextGenerator(system, slots=3, trace=True)(questions, NEW, turns=turns))
    models = [to_transformers(model.config, model.params) for model in system.models]
    counts = []
    for number, _, tokens, trace, _ in answers:
        solved = split_in_turns(tokenizer, number, questions[number], tokens)
        counts.append(len(solved))
        parts = [expected(models, read, said, 420) for read, said in solved]
        wanted = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        assert trace.tokens == tokens
        assert_equal(vars(trace), wanted)
        assert "".join(trace.text) == tokenizer.decode(tokens)
    assert set(counts) == {1, 2, 3}


def test_the_text_of_the_base_is_what_it_would_have_added(system, tokenizer, texts):
    generator, seen = TextGenerator(system, slots=3, trace=True), set()
    for _, text, tokens, trace, _ in generator([text[:20] for text in texts[:6]], NEW):
        assert "".join(trace.text) == text
        for place, base in enumerate(trace.base_tokens):
            before = tokenizer.decode(tokens[:place])
            added = tokenizer.decode([*tokens[:place], base])[len(before) :]
            assert trace.base_text[place] == ("</s>" if base == tokenizer.eos_id else added)
        seen |= {
            base for base, token in zip(trace.base_tokens, tokens, strict=True) if base != token
        }
    assert tokenizer.eos_id in seen and len(seen) > 3


def test_written_numbers_have_four_decimals_and_no_negative_zero(tokenizer):
    ids = tokenizer.encode("a 0.")
    numbers = np.linspace(-0.00002, 0.87654321, len(ids)).astype(np.float32)
    trace = Trace.of(tokenizer, ids, Columns(np.array(ids), numbers, numbers, numbers))
    written = trace.to_json()
    assert list(written) == [field.name for field in dataclasses.fields(Trace)]
    assert written["tokens"] == written["base_tokens"] == ids
    assert written["text"] == written["base_text"] == trace.text
    assert written["moved"][-1] == 0.8765 and str(written["moved"][0]) == "0.0"
    assert trace.moved == numbers.tolist()


def test_an_answer_without_a_token_has_an_empty_trace(system, tokenizer):
    trace = Trace.of(tokenizer, [], Columns(*(np.zeros(0) for _ in range(4))))
    assert set(itertools.chain(*trace.to_json().values())) == set()
