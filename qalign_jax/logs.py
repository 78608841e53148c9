"""Logs on stderr: the package's from INFO upwards, other libraries' from warnings upwards."""

from absl import logging


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
    """Libraries that log through absl too are logged from warnings upwards only."""
    return record.levelno > 20 or "qalign_jax" in record.pathname


class _Formatter(logging.PythonFormatter):
    """Time and text; the source position only for warnings and worse."""

    def format(self, record):
        if record.levelno > 20:
            return super().format(record)
        return f"{self.formatTime(record, '%H:%M:%S')} {record.getMessage()}"
