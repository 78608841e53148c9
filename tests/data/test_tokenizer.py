import json

import pytest
import tokenizers

from qalign_jax.data.tokenizer import load_tokenizer, train_sentencepiece

HARD_TEXTS = [
    "Tom has 3 apples.",
    "  two  spaces\nand a line\n\n",
    "NBSP\u00a0ZWNJ\u200cZWSP\u200b \u2028 line separator",
    "১৮ জন ছেলেমেয়ে 汤姆有 ３ 个",
    "",
]


@pytest.fixture(scope="module")
def hugging_face_directory(texts, tmp_path_factory):
    directory = tmp_path_factory.mktemp("hf")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(params=["sentencepiece", "hugging face"])
def either(request, tokenizer, hugging_face_directory):
    return tokenizer if request.param == "sentencepiece" else load_tokenizer(hugging_face_directory)


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_decoding_gives_the_text_back(either, text):
    assert either.decode(either.encode(text)) == text


def test_a_batch_is_its_texts_one_by_one(either):
    assert either.encode_batch(HARD_TEXTS) == [either.encode(text) for text in HARD_TEXTS]


def test_special_tokens_written_in_a_text_stay_text(either):
    text = "a</s><s>b"
    ids = either.encode(text)
    assert not {either.bos_id, either.eos_id} & set(ids)
    assert either.decode(ids) == text


def test_decoding_leaves_out_special_ids_and_ids_of_a_padded_head(either):
    ids = either.encode("Tom has 3 apples.")
    padded = [either.bos_id, *ids, either.eos_id, either.vocab_size, either.vocab_size + 100]
    assert either.decode(padded) == "Tom has 3 apples."


def test_a_saved_tokenizer_is_the_same_tokenizer(either, tmp_path):
    either.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert again.fingerprint == either.fingerprint
    assert (again.bos_id, again.eos_id, again.vocab_size) == (
        either.bos_id,
        either.eos_id,
        either.vocab_size,
    )
    assert again.encode_batch(HARD_TEXTS) == either.encode_batch(HARD_TEXTS)


def test_bos_and_eos_come_from_config_json_where_nothing_else_says(
    hugging_face_directory, tmp_path
):
    (tmp_path / "tokenizer.json").write_bytes(
        (hugging_face_directory / "tokenizer.json").read_bytes()
    )
    with pytest.raises(ValueError, match="BOS"):
        load_tokenizer(tmp_path)
    config = {"bos_token_id": 0, "eos_token_id": [1, 7]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_tokenizer(tmp_path)
    assert (loaded.bos_id, loaded.eos_id) == (0, 1)
    loaded.save(tmp_path / "saved")  # config.json belongs to the model and is not saved
    assert load_tokenizer(tmp_path / "saved").fingerprint == loaded.fingerprint


def test_training_is_deterministic_and_keeps_user_defined_symbols_whole(texts, tmp_path):
    for name in ("one", "two"):
        train_sentencepiece(
            texts, 400, tmp_path / name, user_defined_symbols=["12", "The answer is"]
        )
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    trained = load_tokenizer(tmp_path / "one")
    assert trained.vocab_size == 400
    assert len(trained.encode("The answer is")) <= 2


def test_too_large_a_vocabulary_says_so(texts, tmp_path):
    with pytest.raises(ValueError, match=r"50000 pieces.*fewer"):
        train_sentencepiece(texts, 50000, tmp_path / "t.model")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"IQ== 0\nIg== 1\n", "tiktoken.*tokenizer.json"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not a sentencepiece model"),
        (b"", "not a sentencepiece model|no BOS"),
    ],
)
def test_a_file_that_is_no_sentencepiece_model_says_what_to_do(tmp_path, content, message):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_tokenizer(tmp_path / "tokenizer.model")


def test_a_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"neither tokenizer\.json nor tokenizer\.model"):
        load_tokenizer(tmp_path)


def test_the_real_tokenizers_load(real_data):
    llama2 = load_tokenizer(real_data / "tokenizers" / "llama2" / "tokenizer.model")
    assert (llama2.vocab_size, llama2.bos_id, llama2.eos_id) == (32000, 1, 2)
    assert llama2.encode("### Response:")[:2] == [835, 13291]
    mistral = load_tokenizer(real_data / "tokenizers" / "mistral" / "tokenizer.model.v1")
    assert (mistral.vocab_size, mistral.bos_id, mistral.eos_id) == (32000, 1, 2)
    with pytest.raises(ValueError, match="LLaMA3"):
        load_tokenizer(real_data / "tokenizers" / "llama3" / "tokenizer.model")
