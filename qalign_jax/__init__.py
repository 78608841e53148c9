"""Question-translation training for multilingual reasoning on TPUs (arXiv 2405.01345).

What notebooks call is here (api.py); every command is a module of this package. `run`, `report`,
`score` and `fits` are functions of the package and commands too: `qalign_jax.run` is always the
function, `python -m qalign_jax.run` and `from qalign_jax.run import ...` the command.
"""

import sys
import types
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qalign_jax.api import ProxyTuned, fits, load, report, run, score

__all__ = ["ProxyTuned", "fits", "load", "report", "run", "score"]


class _Package(types.ModuleType):
    def __setattr__(self, name, value):
        # the import of a command's module would put it in the place of the function
        if not (name in __all__ and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str):
    # JAX is imported with the first use: a command's --help does without it
    if name in __all__:
        from qalign_jax import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
