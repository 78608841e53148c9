"""Logs on stderr: the package's from INFO upwards, other libraries' from warnings upwards."""

from absl import logging

from qalign_jax import credentials


def set_format() -> None:
    """Gives absl's handler the package's format and filter."""
    handler = logging.get_absl_handler()
    handler.setFormatter(_Formatter())
    handler.addFilter(_is_logged)


def show() -> None:
    """Logs as a command does, in a process that absl's app did not start, such as a notebook's."""
    set_format()
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)


def _is_logged(record) -> bool:
    """Libraries that log through absl too are logged from warnings upwards only.

    Orbax logs the traceback of an error in each thread that it passes through, hundreds of lines
    of a full disk, and then raises it; gcsfs raises what it logs, too.
    """
    if record.exc_info and "orbax" in record.pathname:
        return False
    return "qalign_jax" in record.pathname or (record.levelno > 20 and record.name != "gcsfs")


class _Formatter(logging.PythonFormatter):
    """Time and text, without passwords; the source position only for warnings and worse."""

    def format(self, record):
        if record.levelno > 20:
            return credentials.hidden(super().format(record))
        return credentials.hidden(f"{self.formatTime(record, '%H:%M:%S')} {record.getMessage()}")
