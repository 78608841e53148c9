"""Hostile or corrupt input is refused by name, or taken with sane values; nothing else happens."""

import collections
import json
import os
import subprocess
import sys

import pytest

from tests.hostile.cases import is_good, mutated
from tests.hostile.readers import READERS

# Cases that were a traceback, a nameless message or a wrong value before, beside those of CI.
REGRESSIONS = {
    "sentencepiece": (58, 92),
    "tokenizer.json": (25, 155, 332, 387),
    "stage": (125, 130, 165, 184, 308, 362),
    "gsm8kinstruct": (98,),
    "csqa": (271,),
    "xcopa": (258, 266, 318, 376, 398),
    "records": (274,),
    "checksums": (102, 240, 372),
}


@pytest.fixture(scope="module")
def verdicts():
    """Reader -> (seed, file, verdict) of its cases, run in a process without threads."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.hostile.cases",
            "--json",
            f"--more={json.dumps(REGRESSIONS)}",
        ],
        capture_output=True,
        text=True,
        timeout=900,
        env=os.environ | {"XLA_FLAGS": ""},
    )
    assert done.returncode == 0, done.stderr
    found = collections.defaultdict(list)
    for reader, *case in json.loads(done.stdout.splitlines()[-1]):
        found[reader].append(case)
    return found


@pytest.mark.parametrize("reader", READERS)
def test_a_damaged_input_is_refused_by_name_or_read_with_sane_values(reader, verdicts):
    found = verdicts[reader]
    assert len(found) >= READERS[reader].count
    assert not [case for case in found if not is_good(case[2])]
    refused = sum(verdict != "accepted" for *_, verdict in found)
    assert refused > len(found) / 10  # the mutations reach what is read


def test_there_are_two_thousand_mutations_and_their_seeds_make_them(verdicts):
    assert sum(map(len, verdicts.values())) >= 2000
    whole = [("a.json", b'{"a": [1, {"b": "c"}, 2.5], "d": null}'), ("b.txt", b"one\ntwo\n")]
    first = [mutated("records", seed, whole) for seed in range(200)]
    assert first == [mutated("records", seed, whole) for seed in range(200)]
    assert len(set(first)) > 100
