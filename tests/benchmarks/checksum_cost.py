"""What checking a model costs: seconds, and their share of loading it.

    python -m tests.benchmarks.checksum_cost --megabytes=1000

A model of random weights is saved as a stage leaves it and exported to safetensors, and both are
loaded, the best of three: from the page cache, where loading is fastest and the share the largest.
"""

import json
import pathlib
import sys
import tempfile
import time

import jax
from absl import app, flags
from orbax.checkpoint import v1 as ocp

from qalign_jax.checkpoints import hf_weights, integrity
from qalign_jax.checkpoints.model import Model, save_model
from qalign_jax.checkpoints.record import Record, write_record
from qalign_jax.checkpoints.safetensors import TensorFiles
from qalign_jax.convert import convert
from qalign_jax.data.tokenizer import load_tokenizer, train_sentencepiece
from qalign_jax.faults.checksums import check_sums
from qalign_jax.models.params import abstract_params_on, random_params
from qalign_jax.models.presets import preset
from qalign_jax.parallel.mesh import make_mesh


def best(function) -> float:
    times = []
    for _ in range(3):
        began = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - began)
    return min(times)


def measure(folder: pathlib.Path, megabytes: int) -> list[tuple[str, float, float]]:
    """Rows of what was checked, the seconds of its check and of loading without it."""
    texts = [f"{a} + {b} = {a + b}" for a in range(40) for b in range(40)]
    train_sentencepiece(texts, 300, folder / "tokenizer.model")
    tokenizer = load_tokenizer(folder / "tokenizer.model")
    layers = max(1, round(megabytes * 1e6 / 4 / (4 * 1024**2 + 3 * 1024 * 4096)))
    sizes = {"d_model": 1024, "d_ff": 4096, "n_layers": layers, "n_heads": 16, "n_kv_heads": 16}
    config, execution = preset("tiny", vocab_size=300, head_size=64, **sizes)
    mesh = make_mesh("single")
    params = random_params(config, mesh, 0)
    save_model(folder / "stage", Model(config, execution, params, tokenizer, "short"))
    write_record(folder / "stage", Record({}, {}))
    convert(folder / "stage", folder / "exported", mesh="single")
    step_dir = folder / "stage" / "checkpoints" / "0"
    expected = ocp.checkpointables_metadata(step_dir).custom_metadata[integrity.CHECKSUMS]
    wanted = {"params": abstract_params_on(config, mesh)}
    loaded = {"params": params}
    return [
        (
            "a stage: checksums of its arrays",
            best(lambda: integrity.check_checksums(loaded, expected)),
            best(lambda: ocp.load_checkpointables(step_dir, wanted)),
        ),
        (
            "an export: SHA-256 of its files",
            best(lambda: check_sums(folder / "exported")),
            best(lambda: hf_weights.read_params(TensorFiles(folder / "exported"), config, mesh)),
        ),
    ]


def main(_) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(pathlib.Path(folder), flags.FLAGS.megabytes)
    print(f"{'checked':45} {'check s':>8} {'load s':>8} {'share of both':>14}")
    for what, check, load in rows:
        print(f"{what:45} {check:8.2f} {load:8.2f} {100 * check / (check + load):12.1f} %")
    print(json.dumps({what: [check, load] for what, check, load in rows}), file=sys.stderr)


if __name__ == "__main__":
    flags.DEFINE_integer("megabytes", 1000, "Of the model's weights.")
    app.run(main)
