import itertools
import json
import re

import numpy as np
import pytest
import tokenizers
from transformers.convert_slow_tokenizer import bytes_to_unicode

from qalign_jax.data.text_stream import TextStream
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


SCRIPTS = [
    *HARD_TEXTS,
    " Äpfel und  Öl",
    "ทอมมีแอปเปิล 3 ผล แล้ว",
    "టామ్ వద్ద ３ ఆపిల్స్",
    "👩‍👩‍👧‍👦 🇩🇪 e\u0301 𝔘",
]
BYTES = {char: byte for byte, char in bytes_to_unicode().items()}


@pytest.fixture(params=["sentencepiece", "its tokenizer.json", "byte level", "llama2", "mistral"])
def any_kind(request, tokenizer, hugging_face_directory, tmp_path):
    if request.param == "its tokenizer.json":  # byte pieces, and a decoder in steps
        for name, content in tokenizer.hugging_face_files().items():
            if name.endswith(".json"):
                (tmp_path / name).write_bytes(content)
        return load_tokenizer(tmp_path)
    if request.param == "byte level":
        return load_tokenizer(hugging_face_directory)
    if request.param == "sentencepiece":
        return tokenizer
    file = {"llama2": "llama2/tokenizer.model", "mistral": "mistral/tokenizer.model.v1"}
    return load_tokenizer(request.getfixturevalue("real_data") / "tokenizers" / file[request.param])


def complete(tokenizer, ids):
    """The characters of which ids of a valid text hold all bytes, read piece by piece."""
    content = b""
    for piece in map(tokenizer.piece, ids):
        if byte := re.fullmatch("<0x(..)>", piece):
            content += bytes.fromhex(byte[1])
        elif tokenizer.vocab_size == 500:
            content += bytes(BYTES[char] for char in piece)
        else:
            content += piece.encode()
    return content.decode(errors="ignore")


@pytest.mark.parametrize("text", SCRIPTS)
def test_a_characters_text_stands_at_the_id_that_completes_it(any_kind, text):
    ids = any_kind.encode(text)
    told, _ = any_kind.texts(ids, ids)
    lead = len(complete(any_kind, ids)) - len(text)  # the space that decoding drops
    read = [complete(any_kind, ids[:end])[lead:] for end in range(len(ids) + 1)]
    assert told == [now[len(before) :] for before, now in itertools.pairwise(read)]
    assert "".join(told) == text


def test_texts_of_real_questions_together_are_the_decoded_ids(any_kind, real_data):
    for language in ("bn", "th", "zh", "te", "ja", "ru"):
        lines = (real_data / "mgsm" / "tsv" / f"mgsm_{language}.tsv").read_text().splitlines()
        for ids in any_kind.encode_batch([line.split("\t")[0] for line in lines[:5]]):
            told, others = any_kind.texts(ids, ids)
            assert "".join(told) == any_kind.decode(ids) and told == others


def test_texts_of_any_ids_together_are_the_decoded_ids(any_kind):
    rng = np.random.default_rng(0)
    bytes_ = [i for i in range(any_kind.vocab_size) if any_kind.piece(i).startswith("<0x")]
    for size, among in [(40, any_kind.vocab_size + 3), (40, bytes_ or 258), (1, 9), (0, 9)]:
        for _ in range(100):
            ids = rng.choice(among, size).tolist()
            told, others = any_kind.texts(ids, ids[::-1])
            assert "".join(told) == any_kind.decode(ids)
            assert len(told) == len(others) == size


def test_another_id_in_a_place_reads_as_behind_the_same_text(any_kind):
    ids = any_kind.encode("汤姆有 12 个 Äpfel. 👩")
    a, word = (any_kind.encode(f"x{text}")[-1] for text in ("a", " a"))
    assert any_kind.texts(ids, [a] * len(ids))[1] == ["a"] * len(ids)
    space = any_kind.decode([a, word])[1:-1]  # "" where " a" is no piece
    assert any_kind.texts(ids, [word] * len(ids))[1][1:] == [space + "a"] * (len(ids) - 1)
    begun = any_kind.encode("𐎠")[-4]  # the first of four bytes
    assert any_kind.texts(ids, [begun] * len(ids))[1] == [""] * len(ids)
    assert any_kind.texts(ids, [any_kind.eos_id] * len(ids))[1] == [""] * len(ids)


def test_special_ids_have_no_text_and_take_none_from_their_neighbours(any_kind):
    ids = [number for text in ("Tom has", " apples. Tom") for number in any_kind.encode(text)]
    plain, _ = any_kind.texts(ids, ids)
    for special in (any_kind.bos_id, any_kind.vocab_size):
        for place in range(1, len(ids)):
            told, _ = any_kind.texts(
                [*ids[:place], special, special, *ids[place:]], [special] * (len(ids) + 2)
            )
            assert told == [*plain[:place], "", "", *plain[place:]]


def test_an_id_of_a_character_and_a_part_of_the_next_has_the_text_of_the_first(tmp_path):
    """As LLaMA3's: a space and the first two bytes of a Bengali letter are one id."""
    alphabet = sorted(BYTES)
    pieces = ["<s>", "</s>", *alphabet, "Ġà¦", "¬à", "¦¾."]  # of " বা."
    bpe = tokenizers.models.BPE({piece: i for i, piece in enumerate(pieces)}, [])
    made = tokenizers.Tokenizer(bpe)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = load_tokenizer(tmp_path)
    ids = [pieces.index(piece) for piece in ("a", "Ġà¦", "¬à", "¦¾.", "Ġà¦", "¬à", "¦¾.", "b")]
    assert loaded.decode(ids) == "a বা. বা.b"
    told, others = loaded.texts(ids, [pieces.index("Ġà¦")] * len(ids))
    assert told == ["a", " ", "ব", "া.", " ", "ব", "া.", "b"]
    assert others == [" "] * len(ids)


def streamed(tokenizer, ids):
    """What comes with each id, then with the end."""
    stream = TextStream(tokenizer)
    return [*map(stream.add, ids), stream.end()]


@pytest.mark.parametrize("text", SCRIPTS)
def test_streamed_text_appears_with_the_last_token_of_a_character(any_kind, text):
    ids = any_kind.encode(text)
    stream, read = TextStream(any_kind), ""
    lead = len(complete(any_kind, ids)) - len(text)
    for end, number in enumerate(ids, 1):
        read += "".join(text for _, text in stream.add(number))
        now = complete(any_kind, ids[:end])[lead:]
        if byte_runs(any_kind):  # whose text comes with the token behind them
            now = now[: len(read)]
        assert read == now
    assert read + "".join(text for _, text in stream.end()) == text


def byte_runs(tokenizer):
    """Whether bytes in a row are decoded together, and one that is no character's spoils all."""
    ids = tokenizer.encode("𐎠")
    return "𐎠" not in tokenizer.decode([*ids, ids[-4]])


def test_streamed_texts_of_any_ids_together_are_the_decoded_ids(any_kind):
    rng = np.random.default_rng(0)
    bytes_ = [i for i in range(any_kind.vocab_size) if any_kind.piece(i).startswith("<0x")]
    words = [id for text in SCRIPTS for id in any_kind.encode(text)]
    for size, among in [(90, any_kind.vocab_size + 3), (40, bytes_ or 258), (90, words), (1, 9)]:
        for _ in range(50):
            ids = rng.choice(among, size).tolist()
            told = [pair for new in streamed(any_kind, ids) for pair in new]
            assert [number for number, _ in told] == ids
            assert "".join(text for _, text in told) == any_kind.decode(ids)
    first, *others = any_kind.encode("Tom has 3")
    ids = [first, *[any_kind.eos_id] * 70, *others]  # more than are decoded together
    assert "".join(text for new in streamed(any_kind, ids) for _, text in new) == "Tom has 3"
    assert streamed(any_kind, []) == [[]]


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
