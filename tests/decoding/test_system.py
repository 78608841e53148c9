"""A system combines models whose tokenizers split text alike, and answers text with text."""

import dataclasses
import gc
import weakref

import jax
import pytest

from qalign_jax.checkpoints.model import Model, save_model
from qalign_jax.data.tokenizer import load_tokenizer, train_sentencepiece
from qalign_jax.decoding.combine import FirstModel, ProxyTuning
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
    assert answers == [(i, tokenizer.decode(ids), ids, None) for i, ids, _ in expected]


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


def test_a_loaded_system_holds_its_weights_in_the_compute_dtype(tokenizer, tmp_path):
    save_model(tmp_path, model(tokenizer))
    (held,) = System.load([tmp_path], dtype=None).models
    assert held.execution.dtype == "float32"
    (held,) = System.load([tmp_path], dtype="bfloat16").models
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(held.params)}
    assert held.params["layers"]["mlp"]["gate"].dtype == "bfloat16"
    assert dtypes == {"bfloat16", "float32"}  # norms and the embedding


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
