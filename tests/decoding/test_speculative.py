"""Drafts change no token: every form of drafting against plain decoding, in float32.

Plain decoding is compared with transformers in test_engine.py and test_combine.py.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qalign_jax.decoding import draft_length, plan
from qalign_jax.decoding.combine import FirstModel, ProxyTuning
from qalign_jax.decoding.draft_length import DraftLength, best_length, expected_tokens
from qalign_jax.decoding.engine import Engine
from qalign_jax.decoding.likelihood import Continuation
from qalign_jax.decoding.sampling import Sampling
from qalign_jax.decoding.speculative import Drafted, look_up
from qalign_jax.models.config import Execution, LlamaConfig
from qalign_jax.models.llama import Llama
from qalign_jax.models.params import init_params
from qalign_jax.parallel.mesh import make_mesh

CONFIG = LlamaConfig(
    vocab_size=97, d_model=32, n_layers=1, n_heads=4, n_kv_heads=2, d_ff=64, head_size=8,
    max_length=128, init_scale=0.3,
)  # fmt: skip
F32 = Execution(dtype="float32")
EOS, NEW = 1, 20
COUNT = 240  # prompts
SAMPLED = Sampling(0.8, seed=3)


@functools.cache
def models(count=3):
    """A large model, and variants of it that often agree with it: expert and anti-expert."""
    params = init_params(CONFIG, jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)

    def variant(seed):
        keys = jax.random.split(jax.random.key(seed), len(leaves))
        noise = (jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True))
        moved = [leaf + 0.02 * more for leaf, more in zip(leaves, noise, strict=True)]
        return Llama(CONFIG, F32), jax.tree.unflatten(tree, moved)

    return [(Llama(CONFIG, F32), params), variant(1), variant(2)][:count]


def prompts(count=COUNT):
    """From 1 token to as many as leave room for one more, every length the same few ids: EOS and
    what is drafted come up often."""
    rng = np.random.default_rng(7)
    lengths = np.concatenate([[1, 2, 127, 126, 124], rng.integers(1, 120, count - 5)])
    return [rng.integers(0, CONFIG.vocab_size, length).tolist() for length in lengths]


def decode(targets=3, asked=None, new=NEW, slots=16, **options):
    combine = FirstModel() if targets == 1 else ProxyTuning(1.0)
    made = Engine(models(targets), combine, eos_ids=(EOS,), slots=slots, **options)
    return sorted(made.generate(asked or prompts(), new), key=lambda answer: answer.number)


@functools.cache
def plain(targets=3, sampling=Sampling()):
    """Tokens of plain decoding."""
    return [answer.tokens for answer in decode(targets, sampling=sampling, draft_tokens=0)]


def together(answers):
    return sum((answer.drafted for answer in answers), Drafted.nothing())


def test_the_cases_hold_what_can_go_wrong():
    lengths = [len(answer) for answer in plain()]
    assert 0 in lengths and NEW in lengths and len(set(lengths)) > 15  # EOS anywhere
    assert lengths[2:4] == [1, 2]  # no room for more
    assert [len(answer) for answer in plain(3, SAMPLED)] != lengths


@pytest.mark.slow
@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("drafts", [1, 4, "auto"])
def test_proxy_tuned_tokens_are_those_of_plain_decoding(drafts, apart):
    answers = decode(draft_tokens=drafts, apart=apart)
    assert [answer.tokens for answer in answers] == plain()
    drafted = together(answers)
    assert 0.3 < drafted.kept / drafted.compared < 0.95  # drafts are kept, and are not


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [SAMPLED, Sampling(1.0, 0.7, seed=4)])
def test_sampled_tokens_are_those_of_plain_decoding(sampling):
    answers = decode(sampling=sampling, draft_tokens=3, slots=5)
    assert [answer.tokens for answer in answers] == plain(3, sampling)
    drafted = together(answers)
    assert 0.3 < drafted.kept / drafted.compared < 0.95


@pytest.mark.slow
@pytest.mark.parametrize("targets", [1, 3])
@pytest.mark.parametrize("sampling", [Sampling(), SAMPLED])
def test_tokens_of_another_draft_are_those_of_plain_decoding(targets, sampling):
    answers = decode(targets, draft=models()[1], draft_tokens=3, sampling=sampling)
    assert [answer.tokens for answer in answers] == plain(targets, sampling)
    drafted = together(answers)
    assert 0.3 < drafted.kept / drafted.compared < 0.95


@pytest.mark.slow
def test_tokens_of_look_up_are_those_of_plain_decoding():
    assert [answer.tokens for answer in decode(1, draft="lookup", draft_tokens=2)] == plain(1)


@pytest.mark.slow
def test_rounds_read_no_further_than_their_room(monkeypatch):
    monkeypatch.setattr(plan, "LEAST_ROOM", 32)
    asked = prompts()[5:25]
    answers = decode(asked=asked, slots=1, draft_tokens=4)
    assert [answer.tokens for answer in answers] == plain()[5:25]


@pytest.mark.parametrize("new", [1, 2, 3, 6])
def test_a_limit_inside_a_draft_ends_the_answer(new):
    answers = decode(asked=prompts()[:40], new=new, draft_tokens=4)
    assert [answer.tokens for answer in answers] == [each[:new] for each in plain()[:40]]


@pytest.mark.slow
@pytest.mark.parametrize("draft", [None, "model"])
def test_a_mesh_changes_no_token(draft):
    kept = list(range(5, 45))
    asked = [prompts()[number] for number in kept]
    options = dict(draft=models()[1] if draft else None, draft_tokens=3, apart=False)
    answers = decode(asked=asked, mesh=make_mesh("fsdp:4,tensor:2"), slots=8, **options)
    assert [answer.tokens for answer in answers] == [plain()[number] for number in kept]


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, 0.7, seed=4)])
def test_models_that_agree_keep_every_draft(sampling):
    """The expert is the large model, and alpha 0: what it drafts is what is chosen."""
    large, _, antiexpert = models()
    options = dict(eos_ids=(97,), draft_tokens=4, sampling=sampling)
    made = Engine([large, large, antiexpert], ProxyTuning(0.0), **options)
    drafted = together(made.generate([[1, 2, 3]] * 3, 21))
    # the first token is the prefill's, 20 others make 4 rounds
    assert vars(drafted) == {"rounds": 12, "tokens": 60, "compared": 48, "kept": 48}
    assert drafted.shares() == {"tokens_per_round": 5.0, "acceptance": 1.0}


@pytest.mark.slow
def test_a_draft_may_have_fewer_vocabulary_rows():
    narrow = dataclasses.replace(CONFIG, vocab_size=90)
    params = models()[0][1]
    params = params | {
        "embed": {"embedding": params["embed"]["embedding"][: narrow.padded_vocab]},
        "head": {"kernel": params["head"]["kernel"][:, : narrow.padded_vocab]},
    }
    asked = prompts()[:60]
    answers = decode(1, asked, draft=(Llama(narrow, F32), params), draft_tokens=3)
    assert [answer.tokens for answer in answers] == plain(1)[:60]
    drafted = together(answers)
    assert any(id >= 90 for each in plain(1)[:60] for id in each)
    assert drafted.kept / drafted.compared > 0.5  # the same model, but for seven ids


def test_a_draft_of_another_length_changes_no_likelihood():
    short = Llama(dataclasses.replace(CONFIG, max_length=16), F32), models()[1][1]
    texts = [Continuation(list(range(40)), 30), Continuation([3, 4, 5], 1)]

    def likelihoods(**options):
        made = Engine(models(1), FirstModel(), eos_ids=(EOS,), slots=2, **options)
        return dict(made.log_likelihoods(texts))

    assert likelihoods(draft=short) == likelihoods()


@pytest.mark.slow
def test_int8_and_traces_are_those_of_plain_decoding():
    options = dict(asked=prompts()[:60], weights_dtype="int8", cache_dtype="int8", trace=True)
    expected, answers = decode(draft_tokens=0, **options), decode(draft_tokens=3, **options)
    for own, other in zip(answers, expected, strict=True):
        assert own.tokens == other.tokens and own.traced.base_tokens.shape == (len(own.tokens),)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, atol=1e-5), own.traced, other.traced
        )


def test_a_stream_has_the_tokens_of_several_rounds_as_they_come():
    made = Engine(models(), ProxyTuning(1.0), eos_ids=(EOS,), slots=4, draft_tokens=4)
    streamed = {number: [] for number in range(10)}
    for number, tokens, answer in made.stream(prompts()[:10], NEW):
        streamed[number] += tokens
        assert answer is None or answer.drafted.tokens >= len(answer.tokens) - 1
    assert list(streamed.values()) == plain()[:10]


TEXT = jnp.array([[1, 2, 3, 4, 1, 2, 9, 3, 4, 1, 2, 0, 0, 0, 0, 0]])


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        (10, [9, 3, 4, 1]),  # 4 1 2 stood there once, and 1 2 earlier, too
        (5, [3, 4, 1, 2]),  # 1 2
        (8, [1, 2, 9, 3]),  # 3 4
        (6, [9, 9, 9, 9]),  # 9 stands nowhere before: the last place alike in nothing
    ],
)
def test_look_up_goes_on_as_after_the_longest_repetition(position, expected):
    assert look_up(TEXT, jnp.array([position]), 4)[0].tolist() == expected


def test_look_up_takes_the_last_of_equal_places_and_repeats_what_it_reaches():
    text = jnp.array([[7, 7, 8, 7, 7, 9, 7, 7, 0, 0, 0, 0]])
    assert look_up(text, jnp.array([7]), 5)[0].tolist() == [9, 7, 7, 9, 7]


def test_a_plan_whose_drafts_are_never_kept_stops_drafting():
    length = DraftLength(plan_of(slots=1))
    assert length.next(64) > 0
    for _ in range(40):
        length.add(Drafted(100, 100, 100, 0))
    assert length.acceptance < 0.05 and length.next(64) == 0
    for _ in range(99):  # what is not tried any more is forgotten
        length.add(Drafted(10, 10, 0, 0))
    assert length.next(64) > 0


def plan_of(slots):
    """Of a large model of twenty times the small ones' parameters."""
    large = dataclasses.replace(CONFIG, d_model=128, d_ff=512, n_layers=8, head_size=32)
    sizes = (Llama(large, F32), Llama(CONFIG, F32), Llama(CONFIG, F32))
    return plan.with_room(plan.make_plan(sizes, Sampling(), None, slots, draft="expert"), 128)


def test_a_length_stays_until_another_is_clearly_faster(monkeypatch):
    length = DraftLength(plan_of(slots=1))
    first = length.next(64)
    monkeypatch.setattr(
        draft_length, "round_seconds", lambda plan, drafts, read: expected_tokens(drafts, 0.85)
    )
    assert length.next(64) == first  # all are as fast now
    monkeypatch.setattr(draft_length, "round_seconds", lambda plan, drafts, read: 1.0 + drafts)
    assert length.next(64) == 0


def test_expected_tokens_of_a_round():
    assert expected_tokens(0, 0.5) == 1 and expected_tokens(3, 0.5) == 1.875
    assert expected_tokens(4, 1.0) == 5 and expected_tokens(4, 0.0) == 1


def test_more_is_drafted_where_more_is_kept_and_where_fewer_rows_decode():
    lengths = [best_length(plan_of(slots=1), 128, kept) for kept in (0.0, 0.5, 0.99)]
    assert lengths[0] == 0 and sorted(lengths) == lengths and lengths[-1] == 8
    assert 0 < best_length(plan_of(slots=10**6), 128, 0.9) < best_length(plan_of(slots=1), 128, 0.9)


@pytest.mark.parametrize(
    "value",
    ["-1", "17", "\u0663", "9" * 5000, "1.5", "", True, 2.5, -3, 10**5000, None],
    ids=range(11),
)
def test_draft_tokens_out_of_range_are_refused(value):
    with pytest.raises(ValueError, match=r"draft_tokens=.*expected auto, or a whole number"):
        Engine(models(), ProxyTuning(1.0), eos_ids=(EOS,), draft_tokens=value)


def test_drafts_of_nothing_are_refused():
    with pytest.raises(ValueError, match="draft_tokens=4 without a draft: name a model, or lookup"):
        Engine(models(1), FirstModel(), eos_ids=(EOS,), draft_tokens=4)
    with pytest.raises(ValueError, match="draft='model': expected a model, or lookup"):
        Engine(models(1), FirstModel(), eos_ids=(EOS,), draft="model")


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), 1e39, -1001])
def test_alphas_out_of_range_are_refused(alpha):
    with pytest.raises(ValueError, match=r"alpha=.*expected a number from -1000 to 1000"):
        ProxyTuning(alpha)
