"""A value of another shape than its reader needs is named by its place."""

import math

import pytest

from qalign_jax import schema

SHAPE = {
    "name": schema.TEXT,
    "share": schema.PERCENT,
    "count?": schema.whole(1),
    "on?": schema.FLAG,
    "last?": schema.Maybe(schema.NUMBER),
    "kind?": schema.one_of("a", "b"),
    "ends?": (schema.NUMBER, schema.NUMBER),
    "texts?": [schema.TEXT],
    "inside?": {...: {"deep": [schema.TEXT]}},
}
WHOLE = {
    "name": "", "share": 100, "count": 1, "on": False, "last": None, "kind": "b",
    "ends": [0, -1.5], "texts": [], "inside": {"x": {"deep": ["y"], "more": 1}}, "other": object,
}  # fmt: skip

WRONG = [
    ({"name": None}, "name is null; expected text"),
    ({"share": 100.5}, "share is 100.5; expected a number from 0 to 100"),
    ({"share": math.nan}, "share is NaN; expected a number"),
    ({"share": True}, "share is true; expected a number"),
    ({"share": "1"}, 'share is "1"; expected a number'),
    ({"count": 0}, "count is 0; expected a whole number from 1"),
    ({"count": 1.0}, "count is 1.0; expected a whole number"),
    ({"count": True}, "count is true; expected a whole number"),
    ({"on": 0}, "on is 0; expected true or false"),
    ({"last": math.inf}, "last is Infinity; expected a number"),
    ({"kind": "c"}, 'kind is "c"; expected one of a, b'),
    ({"kind": ["a"]}, r'kind is \["a"\]; expected one of a, b'),
    ({"ends": [1]}, r"ends is \[1\]; expected a list of 2"),
    ({"ends": "ab"}, 'ends is "ab"; expected a list'),
    ({"texts": ["a", 2]}, r"texts\[1\] is 2; expected text"),
    ({"inside": []}, r"inside is \[\]; expected an object"),
    ({"inside": {"x": {}}}, r"inside\.x is \{\}; expected an object with 'deep'"),
    ({"inside": {"x": {"deep": [1]}}}, r"inside\.x\.deep\[0\] is 1; expected text"),
    ({"name": ["long"] * 99}, r"name is .{37}\.\.\.; expected text"),
]


def test_a_value_of_the_shape_is_taken():
    schema.check(WHOLE, SHAPE, "a.json", "mend it")
    schema.check({"name": "", "share": 0}, SHAPE, "a.json", "mend it")


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_what_is_of_another_shape_is_named_with_its_place_and_the_remedy(change, message):
    with pytest.raises(ValueError, match=rf"^a\.json: {message}.*; mend it$"):
        schema.check(WHOLE | change, SHAPE, "a.json", "mend it")


def test_a_value_of_no_place_is_shown_and_a_missing_key_is_named():
    with pytest.raises(ValueError, match=r"^a: found 3; expected an object$"):
        schema.check(3, SHAPE, "a")
    with pytest.raises(ValueError, match=r"found \{\}; expected an object with 'name'"):
        schema.check({}, SHAPE, "a")
