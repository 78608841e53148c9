"""Question-translation training for multilingual reasoning on TPUs (arXiv 2405.01345).

`load` and `ProxyTuned` (api.py) are what notebooks call; every command is a module of this package.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qalign_jax.api import ProxyTuned, load

__all__ = ["ProxyTuned", "load"]


def __getattr__(name: str):
    # JAX is imported with the first use: a command's --help does without it
    if name in __all__:
        from qalign_jax import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
