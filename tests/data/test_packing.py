import collections
import json

import grain
import numpy as np
import pytest

from qalign_jax.data import packing, prompts
from qalign_jax.data.tokenizer import load_tokenizer

LENGTH = 96


def own(path, **options):
    return {"name": "jsonl", "path": str(path)} | options


def pack(tmp_path, tokenizer, sources, **changes):
    arguments = {"template": "short", "length": LENGTH, "seed": 0, "pack": True} | changes
    return packing.build(sources, tokenizer, cache_dir=tmp_path / "cache", **arguments)


def documents(packed):
    """(tokens, targets, loss weights) of every document; asserts the layout of its row."""
    found = []
    for row in range(packed.num_rows):
        segments = packed.segment_ids[row]
        used = int((segments > 0).sum())
        assert (segments[:used] > 0).all() and (np.diff(segments[:used]) >= 0).all()
        for name in packing.ARRAYS:
            assert not getattr(packed, name)[row, used:].any()
        for segment in range(1, segments.max() + 1):
            where = np.flatnonzero(segments == segment)
            np.testing.assert_array_equal(packed.positions[row, where], np.arange(len(where)))
            found.append(
                tuple(
                    tuple(getattr(packed, name)[row, where].tolist())
                    for name in ("tokens", "targets", "loss_weights")
                )
            )
    return found


def expected_document(tokenizer, instruction, response, template="short", length=LENGTH):
    prompt = prompts.render(template, instruction) if instruction else ""
    together = tokenizer.encode(prompt + response)
    ids = [tokenizer.bos_id, *together, tokenizer.eos_id][:length]
    first = 1  # the first trained token
    for a, b in zip(together, tokenizer.encode(prompt), strict=False):
        if a != b:
            break
        first += 1
    weights = [int(i >= first) for i in range(1, len(ids))]
    return tuple(ids[:-1]), tuple(ids[1:]), tuple(weights)


@pytest.mark.parametrize("packed_rows", [True, False])
def test_every_token_of_every_example_appears_once(tmp_path, tokenizer, own_data, packed_rows):
    packed = pack(tmp_path, tokenizer, {"own": own(own_data)}, pack=packed_rows)
    rows = [json.loads(line) for line in own_data.read_text().splitlines()]
    expected = [expected_document(tokenizer, r["instruction"], r["response"]) for r in rows]
    assert collections.Counter(documents(packed)) == collections.Counter(expected)
    stats = packed.stats
    assert stats["examples"] == 40
    assert stats["rows"] == packed.num_rows == (40 if not packed_rows else stats["rows"])
    assert stats["trained_tokens"] == int(packed.loss_weights.sum())
    assert stats["positions"] == packed.num_rows * LENGTH
    assert stats["padded_positions"] == 40 * LENGTH
    used = float((packed.segment_ids > 0).mean())
    assert stats["efficiency"] == pytest.approx(used, abs=1e-4)
    assert stats["examples_per_row"] == 40 / packed.num_rows
    if packed_rows:
        assert packed.num_rows < 30
    dtypes = {name: getattr(packed, name).dtype for name in packing.ARRAYS}
    assert dtypes == {name: np.dtype(dtype) for name, dtype in packing.ARRAYS.items()}


def test_the_paper_s_prompt_is_masked_and_the_response_and_eos_are_trained(tmp_path, tokenizer):
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps({"instruction": "How many?", "response": "The answer is 7."}))
    packed = pack(tmp_path, tokenizer, {"own": own(path)}, template="paper", length=400)
    tokens, targets, trained = documents(packed)[0]
    prompt = (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nHow many?\n\n### Response:"
    )
    assert tokens[0] == tokenizer.bos_id
    assert tokenizer.eos_id not in tokens
    assert targets[-1] == tokenizer.eos_id and trained[-1] == 1
    assert tokenizer.decode(tokens) == prompt + "The answer is 7."
    learned = [target for target, weight in zip(targets, trained, strict=True) if weight]
    masked = [target for target, weight in zip(targets, trained, strict=True) if not weight]
    assert tokenizer.decode(masked) == prompt
    assert tokenizer.decode([*masked, *learned]) == prompt + "The answer is 7."
    assert sum(trained) == len(trained) - len(masked)


def test_plain_text_is_trained_whole_and_has_no_prompt(tmp_path, tokenizer):
    path = tmp_path / "plain.jsonl"
    path.write_text(json.dumps({"instruction": "", "response": "Tom has 3 apples."}))
    tokens, targets, trained = documents(pack(tmp_path, tokenizer, {"own": own(path)}))[0]
    assert tokens == (tokenizer.bos_id, *tokenizer.encode("Tom has 3 apples."))
    assert targets == (*tokens[1:], tokenizer.eos_id)
    assert set(trained) == {1}


def test_a_cut_example_has_no_eos_and_one_without_response_left_is_dropped(tmp_path, tokenizer):
    path = tmp_path / "long.jsonl"
    rows = [
        {"instruction": "short", "response": "1 + 1 = 2. " * 100},
        {"instruction": "1 + 1 = 2. " * 100, "response": "dropped"},
        {"instruction": "fits", "response": "yes"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    packed = pack(tmp_path, tokenizer, {"own": own(path)})
    assert (packed.stats["examples"], packed.stats["dropped"], packed.stats["truncated"]) == (
        2,
        1,
        1,
    )
    found = documents(packed)
    longest = max(found, key=lambda document: len(document[0]))
    assert longest == expected_document(tokenizer, "short", rows[0]["response"])
    assert len(longest[0]) == LENGTH - 1
    assert tokenizer.eos_id not in longest[1]
    ids = [i for row in range(packed.num_rows) for i in packed.row_examples(row)]
    assert sorted(ids) == ["own/1", "own/3"]


def test_rows_name_their_examples_in_order(tmp_path, tokenizer, own_data):
    packed = pack(tmp_path, tokenizer, {"own": own(own_data)})
    rows = [json.loads(line) for line in own_data.read_text().splitlines()]
    in_order = [
        expected_document(tokenizer, rows[number]["instruction"], rows[number]["response"])
        for row in range(packed.num_rows)
        for number in (int(name.removeprefix("own/")) - 1 for name in packed.row_examples(row))
    ]
    assert documents(packed) == in_order


@pytest.mark.parametrize(
    ("weight", "counts"), [(2.5, {2: 20, 3: 20}), (0.5, {1: 20}), (1, {1: 40})]
)
def test_a_weight_says_how_often_an_epoch_sees_an_example(
    tmp_path, tokenizer, own_data, weight, counts
):
    packed = pack(tmp_path, tokenizer, {"own": own(own_data, weight=weight)})
    seen = collections.Counter(
        i for row in range(packed.num_rows) for i in packed.row_examples(row)
    )
    assert collections.Counter(seen.values()) == counts
    assert packed.stats["examples"] == sum(seen.values())


def test_sources_are_sliced_weighted_and_mixed_within_rows(
    tmp_path, tokenizer, own_data, pairs_folder
):
    sources = {
        "sums": own(own_data, slice="[10:22]"),
        "pairs": {"name": "question_pairs", "path": str(pairs_folder), "weight": 4.0},
    }
    packed = pack(tmp_path, tokenizer, sources, length=200)
    rows = [packed.row_examples(row) for row in range(packed.num_rows)]
    seen = collections.Counter(name for row in rows for name in row)
    assert {name for name in seen if name.startswith("sums/")} == {
        f"sums/{i}" for i in range(11, 23)
    }
    assert seen["pairs/de/2"] == 4
    mixed = [row for row in rows if len({name.split("/")[0] for name in row}) == 2]
    assert len(mixed) >= 3


def test_the_same_making_gives_the_same_rows_elsewhere(tmp_path, tokenizer, own_data):
    one = pack(tmp_path / "a", tokenizer, {"own": own(own_data, weight=1.5)})
    two = pack(tmp_path / "b", tokenizer, {"own": own(own_data, weight=1.5)})
    assert one.fingerprint == two.fingerprint and one.directory != two.directory
    for name in packing.ARRAYS:
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_the_cache_is_used_again(tmp_path, tokenizer, own_data):
    first = pack(tmp_path, tokenizer, {"own": own(own_data)})
    written = (first.directory / "tokens.npy").stat().st_mtime_ns
    second = pack(tmp_path, tokenizer, {"own": own(own_data)})
    assert second.directory == first.directory
    assert (second.directory / "tokens.npy").stat().st_mtime_ns == written
    assert second.stats == first.stats
    assert [path.name for path in first.directory.parent.iterdir()] == [first.fingerprint]


def test_everything_that_shapes_the_rows_changes_the_fingerprint(tmp_path, tokenizer, own_data):
    def fingerprint(source=None, **changes):
        return pack(tmp_path, tokenizer, {"own": source or own(own_data)}, **changes).fingerprint

    prints = [
        fingerprint(),
        fingerprint(seed=1),
        fingerprint(length=LENGTH + 1),
        fingerprint(pack=False),
        fingerprint(template="Question: {instruction}"),
        fingerprint(own(own_data, weight=2.0)),
        fingerprint(own(own_data, slice="[:30]")),
        fingerprint(own(own_data, language="fr")),
    ]
    own_data.write_text(own_data.read_text().replace("apples", "pears"))
    prints.append(fingerprint())
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize(("length", "low", "high"), [(64, 2, 64), (96, 5, 95), (512, 30, 400)])
def test_no_example_would_have_fitted_into_an_earlier_row(length, low, high):
    """First-fit packing of the examples, in the order of the rows, gives the same rows."""
    rng = np.random.default_rng(length)
    sizes = rng.integers(low, high, 2000)
    rows = packing.packed_rows(rng.permutation(2000), sizes, length)
    order = [index for row in rows for index in row]
    assert sorted(order) == list(range(2000))
    placed = grain.experimental.FirstFitPackIterDataset(
        grain.MapDataset.source(order)
        .map(lambda index: {"used": np.ones(sizes[index], bool), "index": int(index)})
        .to_iter_dataset(grain.ReadOptions(num_threads=1)),
        length_struct={"used": length},
        num_packing_bins=32,
        shuffle_bins=False,
        meta_features=("index",),
    )
    assert [[int(index) for index in row["index"]] for row in placed] == rows


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "folder", "part", "examples"),
    [
        ("gsm8k", "gsm8k", "", 7473),
        # 2,000 questions in seven languages: a quarter of the set, to save time.
        ("question_pairs", "gsm8kinstruct_question", "[:14000]", 14000),
    ],
)
def test_real_data_fills_97_percent_of_the_positions(
    tmp_path, real_data, name, folder, part, examples
):
    llama2 = load_tokenizer(real_data / "tokenizers" / "llama2" / "tokenizer.model")
    sources = {name: {"name": name, "path": str(real_data / folder), "slice": part}}
    packed = packing.build(sources, llama2, "paper", 512, tmp_path / "cache", seed=1234)
    assert packed.stats["examples"] + packed.stats["dropped"] == examples
    assert packed.stats["efficiency"] >= 0.97
    assert (packed.segment_ids[:] > 0).mean() == pytest.approx(packed.stats["efficiency"], abs=1e-4)
    assert packed.stats["padded_positions"] > 2.2 * packed.stats["positions"]
