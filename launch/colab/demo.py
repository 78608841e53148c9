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
# # The demo and its page
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/qalign_jax/blob/main/launch/colab/demo.ipynb)
#
# The whole method on models of one to two million parameters: pretraining, question alignment,
# response alignment, proxy-tuning, evaluation in six languages, and the analyses. Ten minutes on
# any runtime; a CPU is enough. Everything is generated from a seed, and nothing is downloaded.

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
# **Settings.** `FAST` shortens every stage, for a look at the files; its scores mean nothing.

# %% tags=["parameters"]
WORKDIR = "runs/demo"  # @param {type: "string"}
SEED = 0  # @param {type: "integer"}
FAST = False  # @param {type: "boolean"}

# %% [markdown]
# **Run.** Finished stages are skipped and stopped ones go on, so this cell may be run again. The
# table has every system's accuracy in percent with its 95 % interval: `ralign` was tuned on English
# answers alone, `qalign` on question pairs before; `large_proxy` is `large`, never tuned, steered
# by the small models.

# %%
import qalign_jax

outcome = qalign_jax.run("configs/demo.py", WORKDIR, overrides={"seed": SEED, "fast": FAST})
outcome

# %% [markdown]
# **The representation space.** Hidden states of the same questions in six languages: clusters of
# their own before question alignment, one on top of the other afterwards.

# %%
from IPython.display import FileLink, Image, display

Image(f"{WORKDIR}/representations/space.png")

# %% [markdown]
# **Ask the tuned model**, in a language in which it never saw an answer.

# %%
model = qalign_jax.load(f"{WORKDIR}/response_alignment")
questions = ["Tom hat 12 Orangen. Er kauft 5 weitere. Wie viele Orangen hat Tom jetzt?"]
for question, answer in zip(questions, model.answer(questions, max_new_tokens=64), strict=True):
    print(question, answer, sep="\n")

# %% [markdown]
# **The page** has all of it: curves of training, comparisons, every question with every answer. It
# is one file, which opens from disk without a network.

# %%
if "google.colab" in sys.modules:
    from google.colab import files

    files.download(outcome["report"])
display(FileLink(outcome["report"]))
