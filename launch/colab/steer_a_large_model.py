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
# # Steer a model that is too large to tune
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/qalign_jax/blob/main/launch/colab/steer_a_large_model.ipynb)
#
# LLaMA2-13B is steered by a small tuned model against the same untuned: at every token, logits are
# large + alpha * (expert - antiexpert) (arXiv 2401.08565). The anti-expert is LLaMA2-7B, and the
# expert an adapter of it, so that both have the 7B's weights in memory once. In int8, with int8
# caches of 8 rows, all of them fit a v6e-1 (31.25 GiB).
#
# That they fit is what the TPU's compiler says: the notebook was never run on a TPU.

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
# **Settings.** `ADAPTER` is what the notebook `align_your_model` pushed, or the directory that it
# left, of `ANTIEXPERT`. A directory may stand in the place of every name.

# %% tags=["parameters"]
LARGE = "meta-llama/Llama-2-13b-hf"  # @param {type: "string"}
ANTIEXPERT = "meta-llama/Llama-2-7b-hf"  # @param {type: "string"}
ADAPTER = ""  # @param {type: "string"}
ALPHA = 1.0  # @param {type: "number"}
DTYPE = "bfloat16"  # @param ["bfloat16", "float32"]
NARROW = "int8"  # @param ["int8", ""]  # weights and caches; "": as DTYPE
NEW_TOKENS = 200  # @param {type: "integer"}
SLOTS = 8  # @param {type: "integer"}  # rows decoded at once
QUESTIONS = [
    "Ein Bäcker backt 24 Brötchen und verkauft 15. Wie viele bleiben übrig?",
    "Une boîte contient 12 stylos. Combien de stylos contiennent 5 boîtes ?",
]

# %% [markdown]
# **Download.** A model behind a licence says what to do.

# %%
from huggingface_hub import errors, snapshot_download


def download(name):
    """The folder of a model: a local directory, or files of the Hub."""
    if pathlib.Path(name).is_dir():
        return name
    try:
        return snapshot_download(name, allow_patterns=["*.json", "tokenizer*", "*.safetensors"])
    except errors.GatedRepoError:
        raise ValueError(
            f"{name} is behind a licence: accept it at https://huggingface.co/{name}, then run "
            "`huggingface_hub.login()` in a new cell and this one again"
        ) from None


if not ADAPTER:
    raise ValueError("ADAPTER is empty: name what the notebook align_your_model left or pushed")
large, antiexpert, adapter = map(download, (LARGE, ANTIEXPERT, ADAPTER))

# %% [markdown]
# **The large model alone.** Its weights are freed afterwards: the steered system reads its own.

# %%
import qalign_jax

dtypes = dict(dtype=DTYPE, weights_dtype=NARROW, cache_dtype=NARROW)
alone = qalign_jax.load(large, **dtypes)
answers = alone.answer(QUESTIONS, NEW_TOKENS, slots=SLOTS)
del alone
for question, answer in zip(QUESTIONS, answers, strict=True):
    print(f"{question}\n{answer}\n")

# %% [markdown]
# **Steered.** Three models decode as one. `BASE+ADAPTER` names a model with an adapter beside it;
# because its base is the anti-expert, that is loaded once.

# %%
expert = f"{antiexpert}+{adapter}"
steered = qalign_jax.ProxyTuned(large, expert, antiexpert, alpha=ALPHA, **dtypes)
answers = steered.answer(QUESTIONS, NEW_TOKENS, slots=SLOTS)
for question, answer in zip(QUESTIONS, answers, strict=True):
    print(f"{question}\n{answer}\n")

# %% [markdown]
# **Token by token.** Blue tokens became more probable by the steering, orange ones less; underlined
# are those in whose place the large model alone would have said something else. Hover to see what.

# %%
from IPython.display import display

from qalign_jax.data.prompts import render

prompts = [render(steered.template, question) for question in QUESTIONS]
traces = steered.trace(prompts, NEW_TOKENS, slots=SLOTS)
for question, trace in zip(QUESTIONS, traces, strict=True):
    print(question)
    display(trace)
