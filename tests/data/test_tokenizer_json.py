"""Exported and loaded tokenizer.json files split text as in transformers."""

import json

import pytest
import sentencepiece
import transformers

from qalign_jax.data.tokenizer import load_tokenizer, train_sentencepiece

TEXTS = (
    "Q: Tom has 3 apples.\nA:",
    "two  spaces   three\n\n and a line ",
    "12 apples and 1 or 3 more, 123",
    " leading",
    "汤姆有 ３ 个 \u2028 NBSP\u00a0ZWNJ\u200cZWSP\u200b",
    "",
)


def leave(tokenizer, folder):
    """Exports a tokenizer; returns it as AutoTokenizer loads it."""
    folder.mkdir()
    for name, content in tokenizer.hugging_face_files().items():
        (folder / name).write_bytes(content)
    return transformers.AutoTokenizer.from_pretrained(folder)


def assert_same(tokenizer, theirs, texts):
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert theirs.encode(text, add_special_tokens=False) == ids, text
        assert theirs.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids)
    assert theirs(texts[0]).input_ids[0] == tokenizer.bos_id == theirs.bos_token_id
    assert theirs.eos_token_id == tokenizer.eos_id
    assert len(theirs) == tokenizer.vocab_size


def test_a_model_with_symbols_of_its_own_splits_the_same(texts, tmp_path):
    symbols = [f" {number}" for number in range(13)]
    train_sentencepiece(texts, 420, tmp_path / "tokenizer.model", user_defined_symbols=symbols)
    tokenizer = load_tokenizer(tmp_path / "tokenizer.model")
    assert_same(tokenizer, leave(tokenizer, tmp_path / "hf"), TEXTS)


def test_the_files_that_left_load_here_with_the_same_ids(tokenizer, tmp_path):
    leave(tokenizer, tmp_path / "hf")
    assert load_tokenizer(tmp_path / "hf").encode_batch(TEXTS) == tokenizer.encode_batch(TEXTS)


def test_a_model_that_no_tokenizer_json_equals_is_refused(texts, tmp_path):
    with (tmp_path / "tokenizer.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=file, vocab_size=420, model_type="bpe",
            byte_fallback=True, normalization_rule_name="nmt_nfkc", minloglevel=2,
        )  # fmt: skip
    tokenizer = load_tokenizer(tmp_path / "tokenizer.model")
    with pytest.raises(ValueError, match=r"no tokenizer\.json splits"):
        tokenizer.hugging_face_files()


def questions(real_data):
    """mGSM in eleven languages: 2,750 questions."""
    texts = []
    for file in sorted((real_data / "mgsm" / "tsv").glob("*.tsv")):
        lines = file.read_text(encoding="utf-8").split("\n")
        texts += [line.split("\t")[0] for line in lines if line]
    return texts


@pytest.mark.parametrize("name", ["llama2/tokenizer.model", "mistral/tokenizer.model.v1"])
def test_real_tokenizers_split_mgsm_the_same_in_eleven_languages(name, real_data, tmp_path):
    texts = questions(real_data)
    assert len(texts) == 2750
    tokenizer = load_tokenizer(real_data / "tokenizers" / name)
    theirs = leave(tokenizer, tmp_path / "hf")
    assert_same(tokenizer, theirs, [*TEXTS, *texts])
    # the known difference: a special token written in a text stays text in this package
    assert theirs.encode("a</s>b", add_special_tokens=False)[1] == tokenizer.eos_id
    assert tokenizer.eos_id not in tokenizer.encode("a</s>b")


@pytest.mark.slow
def test_llama3s_tokenizer_json_splits_mgsm_the_same_here(real_data, tmp_path):
    from transformers.convert_slow_tokenizer import TikTokenConverter

    vocabulary = real_data / "tokenizers" / "llama3" / "tokenizer.model"
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    special = ["<|begin_of_text|>", "<|end_of_text|>"]
    made = TikTokenConverter(str(vocabulary), pattern, extra_special_tokens=special).converted()
    made.save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": special[0]}
    config |= {"eos_token": special[1]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (128002, 128000, 128001)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    texts = questions(real_data)
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert theirs.encode(text, add_special_tokens=False) == ids


def test_a_bare_sentencepiece_model_reads_differently_in_transformers_5(real_data, tmp_path):
    """The reason to write tokenizer.json: two differences of AutoTokenizer on the bare model."""
    tokenizer = load_tokenizer(real_data / "tokenizers" / "llama2" / "tokenizer.model")
    tokenizer.save(tmp_path)
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("two  spaces", " leading"):
        ids = theirs.encode(text, add_special_tokens=False)
        assert ids != tokenizer.encode(text)
        assert theirs.decode(ids).strip() == text.strip()
    assert theirs.encode("one space", add_special_tokens=False) == tokenizer.encode("one space")
