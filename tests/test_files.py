"""Files are replaced at once and read line by line; errors name the file and line."""

import json

import pytest

from qalign_jax import files, settings
from qalign_jax.checkpoints.card import Card, describe_model
from qalign_jax.models.presets import preset
from qalign_jax.recipe import parts
from qalign_jax.recipe.recipe import Recipe
from qalign_jax.training.metrics import MetricWriter


def test_lines_end_at_newlines_alone_and_say_whether_they_do(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_bytes("\ufeffone\u2028still one\r\n\n\u0085two".encode())
    assert list(files.read_lines(path)) == [
        (1, "one\u2028still one", True), (2, "", True), (3, "\u0085two", False),
    ]  # fmt: skip


def test_bytes_that_are_not_utf8_are_named_but_for_a_last_line_that_may_be_cut_off(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_bytes(b"a\n\xe4\nb")
    with pytest.raises(ValueError, match=r"lines\.txt:2: not UTF-8 \(byte 0xe4\)"):
        list(files.read_lines(path, torn=True))
    path.write_bytes("a\nä".encode()[:-1])
    with pytest.raises(ValueError, match=r":2: not UTF-8"):
        list(files.read_lines(path))
    assert list(files.read_lines(path, torn=True))[1] == (2, "\ufffd", False)


def test_a_line_that_is_no_json_is_named_and_a_torn_last_one_left_out_where_it_may_be(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\n{"a"')
    with pytest.raises(ValueError, match=r"rows\.jsonl:4: not JSON \(.* at column 5\); mend it"):
        list(files.read_json_lines(path, "mend it"))
    rows = list(files.read_json_lines(path, "mend it", torn=True, parse_int=str))
    assert rows == [(1, {"a": "1"}), (3, {"a": "2"})]
    path.write_text('{"a"\n{"a": 2}\n')
    with pytest.raises(ValueError, match=":1: not JSON"):
        list(files.read_json_lines(path, "mend it", torn=True))


def test_what_a_run_keeps_is_replaced_at_once(tmp_path, tokenizer):
    config = parts.recipe("empty", ())
    Recipe(config, tmp_path).run()
    describe_model(tmp_path, Card(*preset("tiny"), "short"), tokenizer)
    writer = MetricWriter(tmp_path, 0)
    writer.write({"step": 1, "loss": 0.5})
    writer.close()
    names = ("config.json", "model.json", "tokenizer/tokenizer.model", "metrics.jsonl")
    before = {name: (tmp_path / name).read_bytes() for name in names}
    opened = {name: open(tmp_path / name, "rb") for name in names}
    config.seed = 7
    Recipe(config, tmp_path).run()
    describe_model(tmp_path, Card(*preset("tiny"), "paper"), tokenizer)
    MetricWriter(tmp_path, 0).close()
    for name, file in opened.items():
        with file:  # an open reader still sees the whole old file
            assert file.read() == before[name], name
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 7
    assert (tmp_path / "metrics.jsonl").read_text() == ""
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()]


# What Python's parser takes, or stumbles over, and no reader can use.
UNUSABLE = {
    "deep": ("[" * 65 + "]" * 65, "nested in more than 64 levels"),
    "deeper than Python recurses": ('{"a":' * 50_000, "nested in more than 64 levels"),
    "deep and whole": ("[" * 50_000 + "]" * 50_000, "nested in more than 64 levels"),
    "an integer of 4,400 digits": ("9" * 4400, "a number too large"),
    "an integer that no float holds": ("[1" + "0" * 400 + "]", "a number too large"),
    "a float that is infinite": ('{"a": 1e999}', "a number too large"),
    "a negative one": ('{"a": -1e999}', "a number too large"),
    "NaN": ('{"a": NaN}', "NaN is no number of JSON"),
    "Infinity": ("[-Infinity]", "-Infinity is no number of JSON"),
    "half a pair": ('{"a": "x \\ud83d"}', r"half a surrogate pair \(\\ud83d\)"),
    "half a pair in a key": ('{"\\uDE00": 1}', r"half a surrogate pair \(\\ude00\)"),
    "two values": ("{} {}", "not JSON"),
    "bytes of no text": (b'{"a": "\xff"}', r"not UTF-8 \(byte 0xff\)"),
    "a pair as UTF-8": (b'"\xed\xa0\xbd\xed\xb8\x80"', r"not UTF-8 \(byte 0xed\)"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_json_that_a_reader_cannot_use_is_refused_by_name(case, tmp_path):
    content, message = UNUSABLE[case]
    path = tmp_path / "a.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=rf"a\.json: {message}.*; mend it$") as raised:
        files.read_json(path, "mend it")
    assert len(str(raised.value)) < 200 + len(str(path))
    with pytest.raises(ValueError, match=rf"a\.json:1: {message}.*; (mend it|convert .*)$"):
        list(files.read_json_lines(path, "mend it"))


def test_json_that_looks_odd_and_is_whole_is_read(tmp_path):
    path = tmp_path / "a.json"
    whole = {
        "emoji": "\U0001f600", "a path": "C:\\ud800", "deep": json.loads("[" * 63 + "]" * 63),
        "small": 1e-300, "large": 1.5e38, "id": 10**30, "NaN": "NaN", "NUL": "\0",
    }  # fmt: skip
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(whole).encode())  # with a byte order mark
    assert files.read_json(path, "") == whole
    path.write_text('{"a": 1e999, "b": NaN}')
    options = {"parse_float": str, "parse_constant": str}
    assert files.read_json(path, "", **options) == {"a": "1e999", "b": "NaN"}


def test_a_file_too_large_for_one_value_is_not_read(tmp_path):
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.truncate(files.LARGEST + 1)  # a hole: it takes no room
    with pytest.raises(ValueError, match=r"a\.json: 268,435,457 bytes, at most 268,435,456 .*; x"):
        files.read_json(path, "x")
    with pytest.raises(ValueError, match="a folder, where a file is expected; x"):
        files.read_json(tmp_path, "x")


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "3"])
def test_a_file_that_holds_no_object_is_named_with_what_to_do(content, tmp_path):
    path = tmp_path / "done.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"done\.json: (not JSON|expected an object).*; mend it"):
        files.read_object(path, "mend it")


def test_settings_that_differ_are_named():
    before = {"lr": 1.0, "data": {"own": {"weight": 1}}, "languages": ["de"]}
    assert settings.differences(before, settings.as_json({**before, "languages": ("de",)})) == ""
    now = {"lr": 2.0, "data": {"own": {"weight": 1, "slice": ""}}, "languages": ["de"]}
    found = settings.differences(before, now)
    assert found == 'data.own.slice was (absent), is ""; lr was 1.0, is 2.0'
