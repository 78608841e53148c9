"""The notebooks of launch/colab, executed on tiny settings, and the examples of the API.

They are executed as a reader would, in a kernel of their own; the settings that a test gives stand
in a cell behind the one tagged `parameters`.
"""

import ast
import base64
import doctest
import html
import http.server
import json
import os
import pathlib
import re
import subprocess
import sys
import threading

import jupytext
import nbclient
import nbformat
import peft
import pytest

import qalign_jax
from qalign_jax.checkpoints.card import read_card
from qalign_jax.convert import convert
from qalign_jax.models.adapter import Adapter
from qalign_jax.models.trainable import Trainable
from qalign_jax.recipe.stages.base import read_stages
from qalign_jax.recipe.stages.train import Train
from tests import stages
from tests.files import QUESTIONS, write_jsonl, write_lines

ROOT = pathlib.Path(__file__).resolve().parents[1]
COLAB = ROOT / "launch" / "colab"
NAMES = ("align_your_model", "demo", "steer_a_large_model")


def execute(name, folder, **settings):
    """Runs a notebook with these settings; returns its code cells."""
    notebook = nbformat.read(COLAB / f"{name}.ipynb", as_version=4)
    tags = [cell.metadata.get("tags", []) for cell in notebook.cells]
    place = tags.index(["parameters"])
    assert set(settings) <= set(re.findall(r"\w+", notebook.cells[place].source))
    changed = "\n".join(f"{key} = {value!r}" for key, value in settings.items())
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(changed))
    where = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=400, resources=where).execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def cell_with(code, cells):
    """The outputs of the one cell whose source holds `code`."""
    [found] = [cell for cell in cells if code in cell.source]
    return found.outputs


def shown(outputs, kind):
    """What a cell showed of a kind, such as text/html."""
    return "".join(output.data[kind] for output in outputs if kind in output.get("data", {}))


def printed(outputs, stream="stdout"):
    return "".join(output.text for output in outputs if output.get("name") == stream)


def numbers(table):
    """The numbers in the table cells of a text in HTML, intervals left out."""
    return [float(number) for number in re.findall(r"<td>(\d+\.\d)", table)]


@pytest.fixture(scope="module", autouse=True)
def kernels_find_this_package():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        yield


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_its_text_and_holds_no_outputs(name):
    assert sorted(path.stem for path in COLAB.glob("*.py")) == list(NAMES)
    notebook = nbformat.read(COLAB / f"{name}.ipynb", as_version=4)
    text = jupytext.read(COLAB / f"{name}.py")
    one, other = (
        [(cell.cell_type, cell.source, cell.metadata.get("tags")) for cell in each.cells]
        for each in (notebook, text)
    )
    assert one == other
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
    nbformat.validate(notebook)


def test_every_notebook_begins_by_the_same_install():
    first = [
        next(cell.source for cell in jupytext.read(path).cells if cell.cell_type == "code")
        for path in sorted(COLAB.glob("*.py"))
    ]
    assert len(first) == 3 and len(set(first)) == 1 and "pip" in first[0]


@pytest.mark.slow
def test_the_demos_notebook_shows_its_table_a_picture_an_answer_and_its_page(demo):
    outcome = json.loads(demo.stdout.splitlines()[-1])
    cells = execute("demo", demo.folder, FAST=True)  # every stage is finished
    code = ("qalign_jax.run(", "Image(", "model.answer(", "FileLink(")
    table, picture, answer, page = (cell_with(each, cells) for each in code)
    text = shown(table, "text/html")
    systems = [results["word_problems"] for results in outcome["systems"].values()]
    languages = ("de", "es", "fr", "sw", "zh", "en", "non_english", "average")
    assert numbers(text) == [round(row[key], 1) for row in systems for key in languages]
    assert "<b>qalign</b>, word_problems, non-English: " in text
    assert f'href="{outcome["report"]}"' in text
    assert base64.b64decode(shown(picture, "image/png"))[1:4] == b"PNG"
    assert printed(answer).startswith("Tom hat 12 Orangen") and printed(answer).count("\n") > 1
    assert f"href='{outcome['report']}'" in shown(page, "text/html")


@pytest.mark.slow
@pytest.mark.parametrize("name", qalign_jax.__all__)
def test_the_examples_of_the_api_are_true(name, demo, monkeypatch):
    monkeypatch.chdir(demo.folder)  # its run is finished: `run` skips every stage
    if name == "fits":
        pytest.importorskip("libtpu")
    finder = doctest.DocTestFinder(recurse=False)
    [example] = finder.find(getattr(qalign_jax, name), name, globs={"qalign_jax": qalign_jax})
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example)
    assert result.attempted and not result.failed


@pytest.fixture(scope="module")
def models(tmp_path_factory, tokenizer):
    """Hugging Face directories of random tiny models, stages of the same, and an adapter of one.

    `adapter` is PEFT's directory of what the stage `tuned` trained beside `small`.
    """
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("large", "small")):
        stages.write_whole(root / f"{name}_stage", tokenizer, seed)
        convert(root / f"{name}_stage", root / name, mesh="single")
    part = Trainable(Adapter(rank=4, alpha=8))
    stages.write_part(root / "tuned", root / "small_stage", part, tokenizer)
    convert(root / "tuned", root / "adapter", peft=True, mesh="single")
    return root


@pytest.mark.slow
def test_a_model_is_fitted_aligned_by_adapters_scored_and_converted(models, tmp_path, monkeypatch):
    pytest.importorskip("libtpu")
    # on one device, rows need not be a multiple of eight; these eight were made with `models`
    one_device = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    monkeypatch.setenv("XLA_FLAGS", one_device)
    write_lines(tmp_path / "pairs/de-en/train.de", QUESTIONS["de"])
    write_lines(tmp_path / "pairs/de-en/train.en", QUESTIONS["en"])
    for language in ("de", "en"):
        problems = [f"{question}\t7" for question in QUESTIONS[language]]
        write_lines(tmp_path / f"mgsm/mgsm_{language}.tsv", problems)
    answers = [
        {"instruction": question, "response": "3 + 4 = 7. The answer is 7."}
        for question in QUESTIONS["en"]
    ]
    write_jsonl(tmp_path / "answers.jsonl", answers)
    cells = execute(
        "align_your_model",
        tmp_path,
        MODEL=str(models / "large"),
        RANK=4,
        QUESTION_PAIRS="pairs",
        RESPONSES="answers.jsonl",
        MGSM="mgsm",
        STEPS=3,
        ROWS=2,
        LENGTH=512,
        MICRO_BATCHES=1,
        LANGUAGES=("de", "en"),
        PROBLEMS=2,
        NEW_TOKENS=8,
        SLOTS=4,
    )
    code = ("qalign_jax.fits(", "qalign_jax.run(", "aligned.answer(", "convert(")
    fits, table, asked, converted = (cell_with(each, cells) for each in code)
    assert "question_alignment: compiling the training step" in printed(fits, "stderr")
    assert printed(table, "stderr").count("question_alignment: step 3 of 3, loss ") == 1
    text = shown(fits, "text/html")
    assert "<b>Fits</b> v5e:1x1, 1" in text and re.search(r"<td>0\.\d\d GiB</td>", text)
    for stage in ("question_alignment", "response_alignment", "evaluation qalign decode"):
        assert f">{stage}</th><td>yes</td>" in text
    assert len(numbers(shown(table, "text/html"))) == 2 * 4

    run = tmp_path / "runs/aligned"
    for stage in ("question_alignment", "response_alignment"):
        part = read_card(run / stage).part
        assert part and part.trainable.adapter == Adapter(rank=4) and part.trainable.int8
        assert part.base == str(models / "large")  # the second trains the first's further
    aligned = qalign_jax.load(
        run / "response_alignment", dtype="bfloat16", weights_dtype="int8", cache_dtype="int8"
    )
    [question] = re.findall(r'question = "(.*)"', cells[-2].source)
    assert printed(asked) == aligned.answer([question], 8)[0] + "\n"
    result = ast.literal_eval(printed(converted))
    assert result["dtype"] == "float32" and result["parameters"] < 60_000
    config = peft.PeftConfig.from_pretrained(tmp_path / result["target"])
    assert isinstance(config, peft.LoraConfig) and config.r == 4
    assert config.base_model_name_or_path == str(models / "large")


@pytest.mark.parametrize("rank", [0, 8])
def test_the_notebook_trains_adapters_of_a_rank_or_all_weights(rank):
    cells = jupytext.read(COLAB / "align_your_model.py").cells
    [settings] = [each.source for each in cells if each.metadata.get("tags") == ["parameters"]]
    [recipe] = [each.source for each in cells if "parts.recipe(" in each.source]
    names: dict = {"model": "/nowhere"}
    exec(f"{settings}\nRANK = {rank}\n{recipe}", names)
    for stage in list(read_stages(names["recipe"]).values())[:2]:
        assert isinstance(stage, Train)
        part = stage.leaves_part
        assert (part and part.adapter) == (Adapter(rank=8) if rank else None)
        assert stage.weights_dtype == ("int8" if rank else "")


@pytest.mark.slow
def test_a_large_model_answers_alone_and_steered_by_an_adapter_and_its_tokens_are_shown(
    models, tmp_path
):
    names = {"LARGE": "large", "ANTIEXPERT": "small", "ADAPTER": "adapter"}
    roles = {role: str(models / name) for role, name in names.items()}
    questions = [QUESTIONS["de"][0], QUESTIONS["en"][0]]
    settings = roles | {"DTYPE": "float32", "NEW_TOKENS": 6, "QUESTIONS": questions}
    cells = execute("steer_a_large_model", tmp_path, **settings)
    code = ("alone.answer(", "steered.answer(", "steered.trace(")
    alone, steered, traces = (cell_with(each, cells) for each in code)
    dtypes = dict(dtype="float32", weights_dtype="int8", cache_dtype="int8")
    expected = qalign_jax.load(models / "large", **dtypes).answer(questions, 6)
    assert printed(alone) == "".join(map("{}\n{}\n\n".format, questions, expected))
    # the stage that trained the adapter, beside the stage that it was trained on
    same = [models / name for name in ("large", "tuned", "small_stage")]
    expected = qalign_jax.ProxyTuned(*same, **dtypes).answer(questions, 6)
    assert printed(steered) == "".join(map("{}\n{}\n\n".format, questions, expected))
    assert printed(steered) != printed(alone)
    span = re.compile(r'<span style="background.*?" title="(.*?)">(.*?)</span>', re.DOTALL)
    tables = [output.data["text/html"] for output in traces if "data" in output]
    assert [len(span.findall(table)) for table in tables] == [6, 6]  # a span a token
    for table, answer in zip(tables, expected, strict=True):
        titles, texts = zip(*span.findall(table), strict=True)
        assert html.unescape("".join(texts)) == answer
        assert all("the base alone:" in title for title in titles)


class Pip:
    """The install cell in a process of its own, with a stand-in for pip that takes notes."""

    PROGRAM = """
import json, pathlib, sys
site = pathlib.Path(__file__).parents[1]
(site / "asked.json").write_text(json.dumps(sys.argv[1:]))
(site / "qalign_jax-0.1.dist-info").mkdir()
(site / "qalign_jax-0.1.dist-info/METADATA").write_text("Name: qalign_jax\\nVersion: 0.1\\n")
[metadata] = site.glob("jax-*/METADATA")
metadata.write_text("Name: jax\\nVersion: {}\\n")
"""
    CELL = """
import json, sys
class Kernel:
    def do_shutdown(self, restart): print("restart", restart)
class IPython:
    kernel = Kernel()
    get_ipython = classmethod(lambda cls: cls)
sys.modules["IPython"] = IPython
exec(sys.stdin.read(), dict(__name__="__main__"))
"""

    def __init__(self, folder, leaves):
        self.site = folder / "site"
        write_lines(self.site / "pip/__init__.py", [])
        write_lines(self.site / "pip/__main__.py", [self.PROGRAM.format(leaves)])
        write_lines(self.site / "jax-0.7.2.dist-info/METADATA", ["Name: jax", "Version: 0.7.2"])

    def install(self, folder, dev="/nowhere"):
        """What the cell prints, and what it asked pip for, None where it did not."""
        source = jupytext.read(COLAB / "demo.py").cells[2].source.replace("/dev/", f"{dev}/")
        folder.mkdir(exist_ok=True)
        asked = self.site / "asked.json"
        asked.unlink(missing_ok=True)
        done = subprocess.run(
            [sys.executable, "-S", "-c", self.CELL], input=source, capture_output=True, text=True,
            cwd=folder, env={"PYTHONPATH": str(self.site)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout, json.loads(asked.read_text())[-1] if asked.exists() else None


def test_the_install_restarts_the_kernel_where_a_version_changed_and_once(tmp_path):
    pip = Pip(tmp_path, leaves="0.10.2")
    (tmp_path / "dev/vfio").mkdir(parents=True)
    (tmp_path / "dev/vfio/0").touch()
    said, asked = pip.install(tmp_path / "content", dev=tmp_path / "dev")
    assert asked == "qalign_jax[tpu] @ git+https://github.com/OWNER/qalign_jax"
    assert "Run the cells again" in said and said.endswith("restart True\n")
    assert pip.install(tmp_path / "content") == ("", None)


def test_the_install_takes_the_checkout_that_the_notebook_lies_in(tmp_path):
    pip = Pip(tmp_path, leaves="0.7.2")
    write_lines(tmp_path / "checkout/qalign_jax/api.py", [])
    (tmp_path / "checkout/launch/colab").mkdir(parents=True)
    said, asked = pip.install(tmp_path / "checkout/launch/colab")
    assert (said, asked) == ("", f"qalign_jax @ {(tmp_path / 'checkout').as_uri()}")


class Gated(http.server.BaseHTTPRequestHandler):
    """Answers as the Hub does for a model whose licence was not accepted."""

    def do_GET(self):
        self.send_response(403)
        self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("X-Error-Message", "Access to this model is restricted.")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, format, *args):
        del format, args


@pytest.mark.parametrize("name", ["align_your_model", "steer_a_large_model"])
def test_a_model_behind_a_licence_says_what_to_do(name, tmp_path):
    [cell] = [
        cell.source for cell in jupytext.read(COLAB / f"{name}.py").cells
        if "def download" in cell.source
    ]  # fmt: skip
    program = cell[: cell.index("\n\n\n", cell.index("def download"))]
    program = f"import pathlib\n{program}\ndownload('owner/model')"
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Gated) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{hub.server_address[1]}"
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True,
            env=os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path)},
        )  # fmt: skip
        hub.shutdown()
    assert done.stderr.splitlines()[-1] == (
        "ValueError: owner/model is behind a licence: accept it at "
        "https://huggingface.co/owner/model, then run `huggingface_hub.login()` in a new cell and "
        "this one again"
    )
