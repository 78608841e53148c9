"""Comparing settings, so that outputs of different ones never mix."""

import json
from collections.abc import Mapping
from typing import Any


def as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as they come back from a JSON file: tuples are lists."""
    return json.loads(json.dumps(settings, ensure_ascii=False))


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs, as text: `lr was 0.003, is 1e-05; seed was ...`; "" where nothing does."""
    before, now = _flat(before), _flat(now)
    absent = "(absent)"
    return "; ".join(
        f"{key} was {before.get(key, absent)}, is {now.get(key, absent)}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    )


def _flat(value: Any, name: str = "") -> dict[str, str]:
    if isinstance(value, Mapping) and value:
        flat = {}
        for key, inner in value.items():
            flat |= _flat(inner, f"{name}.{key}" if name else key)
        return flat
    return {name: json.dumps(value, ensure_ascii=False)}
