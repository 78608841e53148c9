"""Data sets that are downloaded, from a server of this machine."""

import functools
import hashlib
import http.server
import threading

import pytest

from qalign_jax.data.datasets import base, csqa, gsm8k, question_pairs, translations
from qalign_jax.data.examples import load_examples
from qalign_jax.evaluation import benchmarks
from tests.files import write_jsonl

ROW = {"question": "How many?", "answer": "#### 7"}


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        del format, args


@pytest.fixture
def builder(tmp_path):
    """GSM8K, downloaded from a server of a folder with one row."""
    write_jsonl(tmp_path / "served" / "train.jsonl", [ROW])
    handler = functools.partial(_Quiet, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/train.jsonl"

        class Served(gsm8k.GSM8K, skip_registration=True):
            name = "gsm8k"
            URLS = {"inside/train.jsonl": address, "train.jsonl": address}

        yield Served
        server.shutdown()


def test_a_source_without_a_path_is_downloaded_once_in_its_layout(tmp_path, builder):
    source = {"name": "gsm8k"}
    before = load_examples(source, tmp_path / "data", builder)
    assert before[0]["response"] == "The answer is: 7"
    downloads = tmp_path / "data" / "downloads" / "gsm8k"
    assert sorted(str(path.relative_to(downloads)) for path in downloads.rglob("*")) == [
        "inside",
        "inside/train.jsonl",
        "train.jsonl",
    ]
    (tmp_path / "served" / "train.jsonl").unlink()
    assert load_examples(source, tmp_path / "data", builder).name == before.name


def test_a_path_is_never_downloaded(tmp_path, builder):
    own = write_jsonl(tmp_path / "own.jsonl", [ROW | {"answer": "#### 8"}])
    rows = load_examples({"name": "gsm8k", "path": str(own)}, tmp_path / "data", builder)
    assert rows[0]["response"] == "The answer is: 8"
    assert not (tmp_path / "data" / "downloads").exists()


def test_a_download_that_fails_says_what_to_do_and_leaves_nothing(tmp_path, builder):
    (tmp_path / "served" / "train.jsonl").unlink()
    with pytest.raises(ValueError, match=r"HTTP code: 404.*openai/grade-school-math") as raised:
        load_examples({"name": "gsm8k"}, tmp_path / "data", builder)
    assert len(str(raised.value).splitlines()) == 1
    assert not list((tmp_path / "data" / "downloads" / "gsm8k").iterdir())


def test_a_download_of_another_content_is_refused(tmp_path, builder, monkeypatch):
    table = tmp_path / "checksums.tsv"
    content = (tmp_path / "served" / "train.jsonl").read_bytes()
    url = builder.URLS["train.jsonl"]
    monkeypatch.setattr(base, "CHECKSUMS", table)
    table.write_text(f"{url}\t{len(content)}\t{'0' * 64}\ttrain.jsonl\n")
    with pytest.raises(ValueError, match=r"gsm8k could not be downloaded .*wrong checksum"):
        load_examples({"name": "gsm8k"}, tmp_path / "data", builder)
    digest = hashlib.sha256(content).hexdigest()
    table.write_text(f"{url}\t{len(content)}\t{digest}\ttrain.jsonl\n")
    assert len(load_examples({"name": "gsm8k"}, tmp_path / "data", builder)) == 1


def test_a_damaged_download_is_noticed_and_downloaded_again(tmp_path, builder, monkeypatch, caplog):
    table = tmp_path / "checksums.tsv"
    content = (tmp_path / "served" / "train.jsonl").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    url = builder.URLS["train.jsonl"]
    table.write_text(f"{url}\t{len(content)}\t{digest}\ttrain.jsonl\n")
    monkeypatch.setattr(base, "CHECKSUMS", table)
    before = load_examples({"name": "gsm8k"}, tmp_path / "data", builder).name
    file = tmp_path / "data" / "downloads" / "gsm8k" / "train.jsonl"
    file.write_bytes(content.replace(b"7", b"8"))
    again = load_examples({"name": "gsm8k"}, tmp_path / "data", builder)
    assert again.name == before and again[0]["response"] == "The answer is: 7"
    assert file.read_bytes() == content
    assert f"{file} is damaged: it is downloaded again" in caplog.text


def test_the_registered_checksums_are_those_of_the_real_files(real_data):
    lines = base.CHECKSUMS.read_text().splitlines()
    known = {line.split("\t")[0]: line.split("\t")[1:3] for line in lines}
    checked = set()
    for folder, one in (
        ("gsm8k", gsm8k.BUILDER),
        ("commonsenseqa", csqa.BUILDER),
        ("gsm8kinstruct_question", question_pairs.BUILDER),
        ("ntrex128", translations.BUILDER),
        ("mgsm/tsv", benchmarks.get("mgsm").builder),
        ("msvamp", benchmarks.get("msvamp").builder),
    ):
        for file, url in one.URLS.items():
            if (path := real_data / folder / file).exists():
                content = path.read_bytes()
                assert known[url] == [str(len(content)), hashlib.sha256(content).hexdigest()], file
                checked.add(url)
    assert checked == known.keys()
