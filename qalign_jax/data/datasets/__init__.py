"""One TFDS builder a file, and `load_examples` over all of them."""

from qalign_jax.data.datasets.loading import BUILDERS, Source, load_examples

__all__ = ["BUILDERS", "Source", "load_examples"]
