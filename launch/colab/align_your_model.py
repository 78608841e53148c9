# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Align your own model, from the Hub and back
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/qalign_jax/blob/main/launch/colab/align_your_model.ipynb)
#
# Question alignment on pairs of questions (X to English), then response alignment on English
# answers, of a LLaMA or Mistral model from the Hugging Face Hub. LLaMA2-7B fits Colab's v5e-1
# (15.75 GiB) by LoRA adapters: its weights are frozen in int8, and 160 million parameters of rank
# 64 are trained in f32 beside them. With `RANK = 0` all weights are trained. They take 16 bytes a
# parameter: about 0.5 B fit v5e-1, 1.1 B v6e-1 (31.25 GiB).
#
# Memory is what the TPU's compiler says, and step times are modelled from that: the notebook was
# never run on a TPU. Its `fits` cell compiles your settings before the weights are downloaded.

# %% [markdown]
# **Install.** Once a session. Where a package that Colab brings gets another version, the kernel
# restarts: then run the cells again, from the first. A second time this cell does nothing.

# %%
import glob
import importlib.metadata
import pathlib
import subprocess
import sys

import IPython

REPOSITORY = "https://github.com/OWNER/qalign_jax"  # @param {type: "string"}


def versions():
    return {found.name: found.version for found in importlib.metadata.distributions()}


if not {"qalign_jax", "qalign-jax"} & versions().keys():
    here = pathlib.Path.cwd()  # a checkout that is here, or around this notebook, goes first
    folders = [here / "qalign_jax", here, *here.parents]
    checkouts = [folder for folder in folders if (folder / "qalign_jax" / "api.py").is_file()]
    source = checkouts[0].as_uri() if checkouts else f"git+{REPOSITORY}"
    extra = "[tpu]" if glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*") else ""
    before, package = versions(), f"qalign_jax{extra} @ {source}"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package], check=True)
    importlib.invalidate_caches()
    after = versions()
    if any(after.get(name) != version for name, version in before.items()):
        print("Versions changed: the kernel restarts. Run the cells again, from the first.")
        IPython.get_ipython().kernel.do_shutdown(restart=True)

# %% [markdown]
# **Settings.** Without data of your own, the published question pairs and GSM8K's answers are
# downloaded. `QUESTION_PAIRS` is a folder of folders like `de-en`, each with `train.de` and
# `train.en`, a question a line; `RESPONSES` is JSON Lines of `instruction` and `response`.

# %% tags=["parameters"]
MODEL = "meta-llama/Llama-2-7b-hf"  # @param {type: "string"}
TOPOLOGY = "v5e:1x1"  # @param ["v5e:1x1", "v6e:1x1"]
RANK = 64  # @param {type: "integer"}  # of the adapters; 0 trains all weights
WEIGHTS_DTYPE = "int8"  # @param ["int8", ""]  # of frozen weights and of decoding; "": bfloat16
QUESTION_PAIRS = ""  # @param {type: "string"}
RESPONSES = ""  # @param {type: "string"}
MGSM = ""  # @param {type: "string"}
STEPS = 500  # @param {type: "integer"}
ROWS, LENGTH, MICRO_BATCHES = 54, 512, 9  # 54 rows hold about 128 examples, the paper's batch
LEARNING_RATE = 2e-4  # where all weights are trained, 2e-5
LANGUAGES = ("de", "es", "zh", "en")
PROBLEMS, NEW_TOKENS, SLOTS = 50, 300, 16  # slots are the answers decoded at once
WORKDIR = "runs/aligned"  # @param {type: "string"}
EXPORT = "adapter"  # @param ["adapter", "whole_model"]
PUSH_TO = ""  # @param {type: "string"}

# %% [markdown]
# **The model's description**, without its weights yet. A model behind a licence says what to do.

# %%
from huggingface_hub import errors, snapshot_download


def download(name, *patterns):
    """The folder of a model: a local directory, or files of the Hub."""
    if pathlib.Path(name).is_dir():
        return name
    try:
        return snapshot_download(name, allow_patterns=["*.json", "tokenizer*", *patterns])
    except errors.GatedRepoError:
        raise ValueError(
            f"{name} is behind a licence: accept it at https://huggingface.co/{name}, then run "
            "`huggingface_hub.login()` in a new cell and this one again"
        ) from None


model = download(MODEL)

# %% [markdown]
# **The recipe**: two stages of training, and an evaluation before and after them. The second stage
# trains the adapter of the first further. What does not stand here is the paper's.

# %%
import qalign_jax
from qalign_jax.recipe import parts

pairs = parts.source("question_pairs", QUESTION_PAIRS)
responses = parts.source("jsonl" if RESPONSES else "gsm8k", RESPONSES)
training = dict(
    steps=STEPS, rows=ROWS, length=LENGTH, micro_batches=MICRO_BATCHES, lr=LEARNING_RATE
)
if RANK:
    training |= dict(adapter={"rank": RANK}, weights_dtype=WEIGHTS_DTYPE)

recipe = parts.recipe("aligned", ("question_alignment", "response_alignment", "evaluation"))
recipe.question_alignment = parts.training(model, {"pairs": pairs}, **training)
recipe.response_alignment = parts.training("question_alignment", {"answers": responses}, **training)
recipe.evaluation = parts.evaluation(
    systems={"base": parts.system(model), "qalign": parts.system("response_alignment")},
    benchmarks={
        "mgsm": parts.benchmark(
            MGSM, languages=LANGUAGES, limit=PROBLEMS, max_new_tokens=NEW_TOKENS
        )
    },
    baseline="base",
    slots=SLOTS,
    weights_dtype=WEIGHTS_DTYPE,
    cache_dtype=WEIGHTS_DTYPE,
)

# %% [markdown]
# **Does it fit?** The TPU's compiler says what a step of each stage needs of a chip's memory, on
# any runtime that has libtpu (`pip install libtpu`); how long it takes is modelled. Where it does
# not fit, take more micro-batches, fewer slots, a smaller model or a larger chip.

# %%
found = qalign_jax.fits(recipe, TOPOLOGY)
found

# %% [markdown]
# **Train and score.** A session that ended goes on where it was, as long as its disk is there:
# mount a Drive and put `WORKDIR` on it to be safe. A checkpoint of a 7B's adapter with its moments
# has 2 GB, and a stage keeps two while it trains.

# %%
if not found["fits"]:
    raise ValueError(f"{MODEL} with these settings does not fit {TOPOLOGY}: see the table above")
download(MODEL, "*.safetensors")
outcome = qalign_jax.run(recipe, WORKDIR)
outcome

# %% [markdown]
# **Ask it.** The stage's folder finds its base, and in int8 the adapter stays beside it.

# %%
aligned = qalign_jax.load(
    f"{WORKDIR}/response_alignment", weights_dtype=WEIGHTS_DTYPE, cache_dtype=WEIGHTS_DTYPE
)
question = "Ein Bäcker backt 24 Brötchen und verkauft 15. Wie viele bleiben übrig?"
[answer] = aligned.answer([question], NEW_TOKENS, slots=1)
del aligned
print(answer)

# %% [markdown]
# **Back to the Hub.** An `adapter` leaves alone, as PEFT reads it beside its base. A `whole_model`
# is what `transformers` reads, the adapter merged into the int8 weights, dequantised, as its model
# card says; a 7B has 13.5 GB. It is pushed only where `PUSH_TO` names a repository, such as
# `you/aligned`.

# %%
from qalign_jax.convert import convert

forms = {"adapter": {"peft": True}, "whole_model": {"dtype": "bfloat16"}}
target = f"{WORKDIR}/{EXPORT}"
if not pathlib.Path(target).exists():
    print(convert(f"{WORKDIR}/response_alignment", target, **forms[EXPORT]))
if PUSH_TO:
    from huggingface_hub import HfApi

    HfApi().create_repo(PUSH_TO, private=True, exist_ok=True)
    HfApi().upload_folder(repo_id=PUSH_TO, folder_path=target)
