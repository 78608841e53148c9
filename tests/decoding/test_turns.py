"""Answers of several turns against a torch loop that decodes, cuts, appends and reads anew."""

import concurrent.futures
import dataclasses
import functools
import itertools
import time

import jax
import numpy as np
import pytest
import torch

from qalign_jax.checkpoints.model import Model
from qalign_jax.data.tokenizer import load_tokenizer
from qalign_jax.decoding import plan
from qalign_jax.decoding.sampling import Sampling
from qalign_jax.decoding.system import System, TextGenerator
from qalign_jax.decoding.turns import Turns, continuation, stop_table
from qalign_jax.models.config import Execution, LlamaConfig
from qalign_jax.models.params import init_params
from qalign_jax.parallel.mesh import make_mesh
from tests.reference import to_transformers

CONFIG = LlamaConfig(
    vocab_size=423,  # three more than the tokenizer's
    d_model=48,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    d_ff=96,
    head_size=12,
    max_length=512,
    init_scale=0.3,
)
STOP = "e."
# all that the model generates
PIECES = ("</s>", "e", ".", "te", "ie", "0", " ")
LENGTHS = (3, 60, 9, 17, 100, 5, 40, 22, 8, 1, 30, 12)
NEW = 20


@pytest.fixture(scope="module")
def model(tokenizer):
    """A random model; of all pieces it generates PIECES alone."""
    return random_model(tokenizer, PIECES)


def random_model(tokenizer, pieces, config=CONFIG):
    params = init_params(config, jax.random.key(2))
    kept = [i for i in range(tokenizer.vocab_size) if tokenizer.piece(i) in pieces]
    kernel = np.zeros_like(params["head"]["kernel"])
    kernel[:, kept] = params["head"]["kernel"][:, kept]
    params = params | {"head": {"kernel": kernel}}
    return Model(config, Execution(dtype="float32"), params, tokenizer, "short")


@pytest.fixture(scope="module")
def prompts(texts):
    return [text[:length] for text, length in zip(texts, LENGTHS, strict=False)]


def reply_to(number, text):
    """Depends on all that the caller is given."""
    return f"\n{number} has {len(text)}, {text[-4:]}\n"


def told(text):
    future = concurrent.futures.Future()
    future.set_result(text)
    return future


def at_once(number, text):
    return told(reply_to(number, text))


@pytest.fixture
def late():
    """Replies from threads: late, and in another order than they were asked for."""
    delays = itertools.cycle((0.3, 0.0, 0.1, 0.0, 0.2))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:

        def slow(delay, number, text):
            time.sleep(delay)
            return reply_to(number, text)

        yield lambda number, text: pool.submit(slow, next(delays), number, text)


def generator(model, drafts=None, **options):
    names = ["one", "draft"] if isinstance((drafts or {}).get("draft"), Model) else ["one"]
    return TextGenerator(System.of([model], names, **(drafts or {})), **options)


def answers(model, prompts, turns, new=NEW, numbers=None, **options):
    found = list(generator(model, **options)(prompts, new, numbers, turns))
    assert len(found) == len(prompts)
    return {answer.number: (answer.text, answer.tokens) for answer in found}


def greedy(reference, ids, new, eos):
    out = reference.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=new,
        do_sample=False,
        eos_token_id=eos,
        pad_token_id=0,
    )[0, len(ids) :].tolist()
    return out[:-1] if out[-1] == eos else out


def solve(reference, model, number, prompt, most=3, new=NEW, stop=STOP):
    """The answer, the ids of each of its turns, and whether a turn ended at its limit."""
    tokenizer, text, turns, limited = model.tokenizer, prompt, [], False
    while True:
        ids = tokenizer.encode_prompts([text])[0]
        room = min(new, model.config.max_length - len(ids))
        if room < 1:
            break
        out = greedy(reference, ids, room, tokenizer.eos_id)
        said = [tokenizer.decode(ids + out[:n])[len(text) :] for n in range(len(out) + 1)]
        found = [n for n, part in enumerate(said) if stop in part]
        out = out[: found[0]] if found else out
        last = said[len(out)]
        if not turns:  # where an answer begins, no space is told
            start = len(text) + len(last) - len(tokenizer.decode(out))
        turns.append(out)
        limited = limited or len(out) == new
        text += last[: last.find(stop) + len(stop)] if found else last
        if not found or len(turns) > most:
            break
        text += reply_to(number, text[start:])
    return text[start:], turns, limited


@pytest.fixture(scope="module")
def expected(model, prompts):
    """The reference's answers by stop string, each solved once."""
    reference = to_transformers(model.config, model.params)

    @functools.cache
    def solved(stop):
        with torch.no_grad():
            return [
                solve(reference, model, *numbered, stop=stop) for numbered in enumerate(prompts)
            ]

    return solved


def joined(turns):
    return list(itertools.chain(*turns))


def plain(solved):
    return {number: (text, joined(turns)) for number, (text, turns, _) in enumerate(solved)}


def test_the_reference_has_every_case(model, expected):
    solved = expected(STOP)
    turns = [turns for _, turns, _ in solved]
    assert {1, 2, 3, 4} == {len(each) for each in turns}
    assert any(len(each) == 4 and text.endswith(STOP) for text, each, _ in solved)
    assert any(len(each) == 4 and not text.endswith(STOP) for text, each, _ in solved)
    assert any(limited for *_, limited in solved)
    assert any(each == [[]] for each in turns)
    ends = {tuple(model.tokenizer.piece(i) for i in t[-2:]) for each in turns for t in each[:-1]}
    assert ends >= {("e", "."), ("te", "."), ("ie", ".")}  # a stop string is never one piece
    assert any(len(turn) == 1 for _, each, _ in expected(".") for turn in each[:-1])
    # an answer that begins with the stop string's space, which is not told
    assert any(text.startswith("i\n") for text, _, _ in expected(" i"))


@pytest.mark.parametrize("slots", [1, 16])
@pytest.mark.parametrize("stop", [STOP, ".", " i"])
def test_tokens_and_texts_are_those_of_the_reference_with_late_replies(
    stop, slots, model, prompts, expected, late
):
    assert answers(model, prompts, Turns(stop, late), slots=slots) == plain(expected(stop))


@pytest.mark.slow
@pytest.mark.parametrize("draft", ["lookup", "model"])
def test_a_stop_string_inside_a_draft_ends_a_turn(draft, model, prompts, expected):
    drafts = {"draft": model if draft == "model" else draft, "draft_tokens": 4}
    made = generator(model, drafts, slots=5)
    found = list(made(prompts, NEW, turns=Turns(STOP, at_once)))
    told = {answer.number: (answer.text, answer.tokens) for answer in found}
    assert told == plain(expected(STOP))
    for answer in found:  # counted over all turns: a token of each is the prefill's
        turns = len(expected(STOP)[answer.number][1])
        decoded = answer.drafted.tokens
        assert len(answer.tokens) - turns <= decoded <= len(answer.tokens) + 1
    if draft == "model":  # it drafts for itself, up to EOS and the stop string
        assert all(answer.drafted.kept == answer.drafted.compared for answer in found)


def test_a_prefill_takes_as_many_rows_as_its_longest_prompt_allows(
    model, prompts, expected, monkeypatch
):
    monkeypatch.setattr(plan, "PREFILL_POSITIONS", 128)  # one row of 128 or two of 64
    found = answers(model, prompts, Turns(STOP, at_once), slots=16)
    assert found == plain(expected(STOP))


@pytest.mark.slow
def test_a_mesh_changes_no_answer(model, prompts, expected):
    mesh = make_mesh("fsdp:4,tensor:2")
    found = answers(model, prompts, Turns(STOP, at_once), slots=16, mesh=mesh)
    assert found == plain(expected(STOP))


@pytest.mark.parametrize("most", [0, 1])
def test_after_the_most_replies_the_next_stop_string_ends_an_answer(most, model, prompts, expected):
    found = answers(model, prompts, Turns(STOP, at_once, most=most), slots=16)
    for number, (text, turns, _) in enumerate(expected(STOP)):
        replies = len(turns) - 1
        assert found[number][1] == joined(turns[: most + 1])
        assert (found[number][0] == text) == (replies <= most)
        assert replies <= most or found[number][0].endswith(STOP)


def test_no_reply_ends_an_answer_at_the_stop_string(model, prompts, expected):
    asked = []
    found = answers(model, prompts, Turns(STOP, lambda *given: asked.append(given)), slots=16)
    stopped = {n: turns for n, (_, turns, _) in enumerate(expected(STOP)) if len(turns) > 1}
    assert dict(asked) == {number: found[number][0] for number in stopped}
    for number, turns in stopped.items():
        assert found[number][1] == turns[0] and found[number][0].endswith(STOP)


def test_a_stop_string_that_never_comes_changes_no_answer(model, prompts):
    without = generator(model, slots=16)(prompts, NEW)
    found = answers(model, prompts, Turns("</llm-code>", at_once), slots=16)
    assert found == {number: (text, ids) for number, text, ids, *_ in without}


def test_a_row_that_waits_for_its_reply_gives_its_slot_to_others(model, prompts, expected):
    replied = [n for n, (_, turns, _) in enumerate(expected(STOP)) if len(turns) > 1]
    stopped = max(replied, key=lambda n: len(prompts[n]))  # the longest is the first in the slot
    others = [
        n
        for n, (_, turns, _) in enumerate(expected(STOP))
        if len(turns) == 1 and len(prompts[n]) < len(prompts[stopped])
    ]
    asked, first = [], concurrent.futures.Future()

    def reply(number, text):
        asked.append((number, text))
        return first if len(asked) == 1 else at_once(number, text)

    chosen = [stopped, *others]
    found = generator(model, slots=1)([prompts[n] for n in chosen], NEW, chosen, Turns(STOP, reply))
    assert {next(found).number for _ in others} == set(others)  # while there is no reply
    assert [number for number, _ in asked] == [stopped]
    first.set_result(reply_to(*asked[0]))
    assert [answer.text for answer in found] == [expected(STOP)[stopped][0]]


def test_an_answer_goes_on_before_others_begin(model, prompts, expected):
    asked = []
    turns = Turns(STOP, lambda number, text: asked.append(number) or at_once(number, text))
    assert answers(model, prompts, turns, slots=1) == plain(expected(STOP))
    assert len([number for number, _ in itertools.groupby(asked)]) == len(set(asked)) > 3


def test_an_answer_ends_where_a_reply_leaves_no_room(tokenizer, prompts, caplog):
    short = random_model(tokenizer, PIECES, dataclasses.replace(CONFIG, max_length=80))
    reference = to_transformers(short.config, short.params)
    solved = [solve(reference, short, *numbered) for numbered in enumerate(prompts)]
    found = answers(short, prompts, Turns(STOP, at_once), slots=16)
    assert found == plain(solved)
    full = [text for text, _, _ in solved if text.endswith("\n")]
    assert full and len(full) < len(solved)
    assert sum("leaves room for" in record.message for record in caplog.records) == 1


def test_caches_have_room_for_the_replies_that_were_announced(model, prompts, expected, caplog):
    needed = max(len(turns) for _, turns, _ in expected(STOP)) - 1
    longest = max(len(reply_to(n, text)) for n, (text, _, _) in enumerate(expected(STOP)))
    turns = Turns(STOP, at_once, most=needed, reply_tokens=4 * longest)
    assert turns.room(NEW) == (needed + 1) * NEW + needed * 4 * longest
    assert answers(model, prompts, turns, slots=16) == plain(expected(STOP))
    assert not caplog.records


def test_a_stop_string_in_byte_pieces_is_found_by_the_end_of_a_turn(tokenizer, prompts):
    model = random_model(tokenizer, ("</s>", "<0x65>", ".", "0"))
    reference = to_transformers(model.config, model.params)
    solved = [solve(reference, model, *numbered) for numbered in enumerate(prompts)]
    found = answers(model, prompts, Turns(STOP, at_once), slots=16)
    assert [found[n][0] for n in range(len(prompts))] == [text for text, _, _ in solved]
    late = [n for n, (_, turns, _) in enumerate(solved) if len(found[n][1]) > len(joined(turns))]
    assert late


@pytest.mark.slow
def test_samples_of_several_turns_depend_on_no_slot_and_no_delay(model, prompts, late):
    sampling = Sampling(temperature=1.0, seed=3)
    found = answers(model, prompts, Turns(STOP, late), slots=1, sampling=sampling)
    assert found == answers(model, prompts, Turns(STOP, at_once), slots=16, sampling=sampling)
    part = answers(
        model, prompts[5:9], Turns(STOP, late), NEW, range(5, 9), slots=16, sampling=sampling
    )
    assert part == {number: found[number] for number in range(5, 9)}


@pytest.mark.slow
def test_later_turns_sample_with_new_noise(model, prompts):
    """Where all logits are equal, noise alone chooses: turns are parts of one long answer."""
    equal = dataclasses.replace(
        model,
        params=model.params | {"head": {"kernel": np.zeros_like(model.params["head"]["kernel"])}},
    )
    sampling = Sampling(temperature=1.0, seed=1)
    whole = {
        n: ids for n, _, ids, *_ in generator(equal, slots=16, sampling=sampling)(prompts, 4 * NEW)
    }
    turns = Turns("e", at_once)
    found = answers(equal, prompts, turns, slots=16, sampling=sampling)
    assert any(text.count("has") > 1 for text, _ in found.values())
    for number, (_, ids) in found.items():
        assert ids == whole[number][: len(ids)]


def test_what_a_reply_raises_is_raised_to_the_caller(model, prompts):
    broken = concurrent.futures.Future()
    broken.set_exception(OSError("the sandbox is gone"))
    with pytest.raises(OSError, match="the sandbox is gone"):
        answers(model, prompts, Turns(STOP, lambda number, text: broken), slots=16)


def test_a_generator_that_is_closed_early_asks_for_nothing_more(model, prompts):
    begun = []

    def slow(number):
        begun.append(number)
        time.sleep(0.2)
        return "\n"

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        turns = Turns(STOP, lambda number, text: pool.submit(slow, number))
        found = generator(model, slots=16)(prompts, NEW, None, turns)
        next(found)
        found.close()
    assert len(begun) == 1  # the others were waiting for the thread


@pytest.mark.parametrize("kind", ["sentencepiece", "tokenizer.json"])
@pytest.mark.parametrize("stop", ["e.", " e", "ee0ee", "个？", "e"])
def test_the_table_finds_a_stop_string_where_it_is_in_the_text(stop, kind, tokenizer, tmp_path):
    if kind == "tokenizer.json":
        for name, content in tokenizer.hugging_face_files().items():
            if name.endswith(".json"):
                (tmp_path / name).write_bytes(content)
        tokenizer = load_tokenizer(tmp_path)
    pieces = ("<s>", "</s>", "<unk>", "e", ".", "es", "ie", " 8.", "0", " ", "个", "？", "<0xE6>")
    ids = [i for i in range(tokenizer.vocab_size) if tokenizer.piece(i) in pieces]
    ids += [tokenizer.vocab_size, 422]
    assert len(ids) == len(pieces) + 2
    table = stop_table(tokenizer, stop, 423)
    rng, occurred = np.random.default_rng(0), 0
    for _ in range(300):
        matched, said = 0, []
        for number in rng.choice(ids, 12).tolist():
            said.append(number)
            matched = table[matched, number]
            assert (matched == len(stop)) == (stop in continuation(tokenizer, said))
        occurred += matched == len(stop)
    assert occurred


def test_the_table_takes_no_byte_piece_for_a_part_of_the_stop_string(tokenizer):
    pieces = {tokenizer.piece(i): i for i in range(tokenizer.vocab_size)}
    table = stop_table(tokenizer, STOP, 420)
    assert table[:, pieces["<0x65>"]].tolist() == [0, 0, 2]
    assert table[:, pieces["e"]].tolist() == [1, 1, 2]


def test_a_table_for_llama2_follows_a_block_of_code(real_data):
    llama2 = load_tokenizer(real_data / "tokenizers" / "llama2" / "tokenizer.model")
    table = stop_table(llama2, "</llm-code>", 32_000)
    ids = llama2.encode("<llm-code>\nprint(3 < 4)\n</llm-code>\n")
    matched = list(itertools.accumulate(ids, lambda m, number: table[m, number], initial=0))
    assert llama2.decode(ids[: matched.index(11)]) == "<llm-code>\nprint(3 < 4)\n</llm-code>"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stop": ""}, "stop is empty"),
        ({"most": -1}, "most=-1"),
        ({"reply_tokens": -1}, "reply_tokens=-1"),
    ],
)
def test_bad_turns_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Turns(**{"stop": STOP, "reply": at_once} | settings)


def test_two_prompts_of_one_number_are_refused(model):
    with pytest.raises(ValueError, match="two prompts have the same number"):
        generator(model)(["a", "b"], NEW, [1, 1], Turns(STOP, at_once))
