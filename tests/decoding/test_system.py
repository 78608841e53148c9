"""A system combines models whose tokenizers split text alike, and answers text with text."""

import dataclasses
import gc
import weakref

import jax
import pytest

from qalign_jax.checkpoints.model import Model, save_model
from qalign_jax.data.tokenizer import load_tokenizer, train_sentencepiece
from qalign_jax.decoding.combine import FirstModel, ProxyTuning
from qalign_jax.decoding.engine import Engine
from qalign_jax.decoding.sampling import Sampling
from qalign_jax.decoding.system import System, TextGenerator
from qalign_jax.models.params import init_params
from qalign_jax.models.presets import preset

NAMES = ("large", "expert", "antiexpert")
TEXTS = ["Tom has 3", "wie viele"]


def model(tokenizer, seed=0, template="short"):
    config, execution = preset("tiny", vocab_size=420, init_scale=0.3, max_length=64)
    params = init_params(config, jax.random.key(seed))
    return Model(config, execution, params, tokenizer, template)


def trained(folder, texts, size):
    train_sentencepiece(texts, size, folder / "tokenizer.model")
    return load_tokenizer(folder / "tokenizer.model")


def test_text_goes_in_after_bos_and_comes_out(tokenizer):
    system = System.of([model(tokenizer)], ["one"])
    assert isinstance(system.combine, FirstModel)
    ids = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in TEXTS]
    assert system.encode(TEXTS) == ids
    expected = sorted(system.engine(slots=2).generate(ids, 6))
    answers = sorted(TextGenerator(system, slots=2)(TEXTS, 6))
    assert answers == [(i, tokenizer.decode(ids), ids, None, None) for i, ids, *_ in expected]


def test_a_text_generator_keeps_no_weights_but_its_engines(tokenizer):
    config, execution = preset("tiny", vocab_size=420)
    narrow = dataclasses.replace(execution, dtype="bfloat16")
    params = init_params(config, jax.random.key(0))
    gate = weakref.ref(params["layers"]["mlp"]["gate"])
    one = System.of([Model(config, narrow, params, tokenizer, "short")], ["one"])
    generator = TextGenerator(one, slots=2)
    del params, one
    gc.collect()
    assert gate() is None and list(generator(TEXTS, 2))


def test_a_loaded_system_holds_its_weights_as_decoding_reads_them_alone(tokenizer, tmp_path):
    save_model(tmp_path, model(tokenizer))
    (held,) = System.load([tmp_path], dtype=None).models
    assert held.execution.dtype == "float32"
    (held,) = System.load([tmp_path], dtype="bfloat16").models
    assert {leaf.dtype.name for leaf in jax.tree.leaves(held.params)} == {"bfloat16", "float32"}
    gate, norm = (held.params["layers"][name] for name in ("mlp", "mlp_norm"))
    assert gate["gate"].values.dtype == "bfloat16" and norm["scale"].dtype == "float32"
    before = jax.live_arrays()
    int8 = System.load([tmp_path], dtype="bfloat16", weights_dtype="int8")
    gate = int8.models[0].params["layers"]["mlp"]["gate"]
    assert gate.values.dtype == "int8" and gate.scale.dtype == "float32"
    known = {id(array) for array in before} | {
        id(leaf) for leaf in jax.tree.leaves(int8.models[0].params)
    }
    assert all(id(array) in known for array in jax.live_arrays())  # no wide copy is left


def test_an_engine_shares_the_arrays_of_a_system_that_holds_them_as_it_does(tokenizer, tmp_path):
    save_model(tmp_path, model(tokenizer))
    for weights_dtype in ("", "int8"):
        (loaded,) = System.load([tmp_path], weights_dtype=weights_dtype).models
        engine = Engine(
            [(loaded.module, loaded.params)], eos_ids=(2,), apart=False, weights_dtype=weights_dtype
        )
        assert engine._params[0] is loaded.params


def test_generators_with_other_options_share_one_set_of_weights(tokenizer):
    generator = TextGenerator(System.of([model(tokenizer)], ["one"]))
    before = len(jax.live_arrays())
    other = generator.with_options(slots=1, sampling=Sampling(2.0, seed=3), trace=True)
    assert len(jax.live_arrays()) == before
    system = System.of([model(tokenizer)], ["one"])
    new = TextGenerator(system, slots=1, sampling=Sampling(2.0, seed=3), trace=True)
    assert list(other(TEXTS, 6)) == list(new(TEXTS, 6))
    assert sorted(generator(TEXTS, 6)) == sorted(TextGenerator(system)(TEXTS, 6))
    with pytest.raises(ValueError, match="slots -1"):
        generator.with_options(slots=-1)


def test_dtypes_that_there_are_not_are_refused_before_weights_are_read(tokenizer, tmp_path):
    for key in ("weights_dtype", "cache_dtype"):
        with pytest.raises(ValueError, match=f"{key}='int4': expected int8, or nothing"):
            System.load([tmp_path / "nowhere"], **{key: "int4"})
        with pytest.raises(ValueError, match=f"{key}='int4': expected int8, or nothing"):
            System.of([model(tokenizer)], ["one"], **{key: "int4"})


def test_three_models_are_proxy_tuned_and_asked_as_the_expert_was_trained(tokenizer):
    models = [model(tokenizer, i, template) for i, template in enumerate(("paper", "short", "a"))]
    system = System.of(models, NAMES, alpha=0.5)
    assert system.combine == ProxyTuning(0.5) and system.template == "short"
    with pytest.raises(ValueError, match="2 models: a system has one, or a large one with two"):
        System.of(models[:2], NAMES[:2])


def test_tokenizers_of_other_pieces_are_refused_by_the_first(tokenizer, texts, tmp_path):
    other = trained(tmp_path, [text.upper() for text in texts], 420)
    with pytest.raises(ValueError, match=r"of large and expert differ: the piece \d+ is '.*' and"):
        System.of([model(each) for each in (tokenizer, other, tokenizer)], NAMES)


def test_a_tokenizer_with_pieces_added_at_its_end_is_the_same(tokenizer, tmp_path):
    (tmp_path / "more").mkdir()
    for name, content in tokenizer.hugging_face_files().items():
        if name.endswith(".json"):
            (tmp_path / "more" / name).write_bytes(content)
    same = load_tokenizer(tmp_path / "more")
    assert same.fingerprint != tokenizer.fingerprint
    system = System.of([model(each) for each in (tokenizer, same, tokenizer)], NAMES)
    assert system.encode(TEXTS) == [[1, *tokenizer.encode(text)] for text in TEXTS]


def test_a_text_that_two_tokenizers_split_differently_is_refused(tokenizer):
    system = System.of([model(tokenizer)] * 3, NAMES)

    class Odd:
        fingerprint = "odd"

        def encode_prompts(self, texts):
            return [[0] for _ in texts]

    models = (*system.models[:2], model(Odd()))
    odd = System(models, system.combine, system.names)
    with pytest.raises(ValueError, match="of large and antiexpert differ: 'Tom has 3' has other"):
        odd.encode(TEXTS)
