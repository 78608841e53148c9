"""The metrics of training: metrics.jsonl and TensorBoard."""

import json
import time
from typing import Any

import jax
from absl import logging
from etils import epath
from tensorboardX import record_writer
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tensorboardX.summary import scalar

from qalign_jax import files, schema
from qalign_jax.faults import storage

_protos: Any = event_pb2  # whose classes are made when it is imported
_FLUSH_S = 60.0  # how long TensorBoard waits for a row


class _RemoteEvents:
    """TensorBoard's events in an object, which is written whole each time.

    tensorboardX has a writer of its own, which takes an upload that it has repeated for another
    writer's, and ends. Training goes on without TensorBoard: metrics.jsonl has the same figures.
    """

    def __init__(self, path: str):
        self._path, self._content = path, bytearray()

    def write(self, part: bytes) -> None:
        self._content += part

    def flush(self) -> None:
        try:
            files.write_bytes(self._path, bytes(self._content))
        except OSError as error:
            logging.warning("%s", error)

    close = flush


class _RemoteEventsFactory:
    open = _RemoteEvents

    def directory_check(self, path: str) -> None:
        """Object stores have no folders."""


record_writer.register_writer_factory("gs", _RemoteEventsFactory())


class MetricWriter:
    """Appends rows to metrics.jsonl and TensorBoard; process 0 alone writes.

    Starting again at a step drops the rows from there on, and a torn last line with them, so that
    the file reads like that of a run that was never stopped.
    """

    def __init__(self, stage_dir, first_step: int):
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        stage_dir = epath.Path(stage_dir)
        self._path = stage_dir / "metrics.jsonl"
        self._rows = _rows_before(self._path, first_step)
        before = self._path.read_bytes() if self._path.exists() else None
        if before != self._content():
            files.write_bytes(self._path, self._content())
        self._board = _Board(stage_dir / "tensorboard", first_step)

    @property
    def rows(self) -> list[dict]:
        """The rows so far; none where this process writes none."""
        return [json.loads(row) for row in self._rows] if self._writes else []

    def write(self, row: dict) -> None:
        """Adds a row with `step`; None values are left out of TensorBoard."""
        if not self._writes:
            return
        self._rows.append(json.dumps(row))
        self._board.write(row)
        if not files.is_remote(self._path):
            with storage.writing(self._path), open(self._path, "a", encoding="utf-8") as file:
                file.write(self._rows[-1] + "\n")
        elif len(self._rows) % 100 == 0:  # object stores cannot append
            files.write_bytes(self._path, self._content())

    def flush(self) -> None:
        """Returns when all rows are in the file; a run resumes behind its last checkpoint."""
        if self._writes and files.is_remote(self._path):
            files.write_bytes(self._path, self._content())

    def close(self) -> None:
        self.flush()
        if self._writes:
            self._board.close()

    def _content(self) -> bytes:
        return "".join(row + "\n" for row in self._rows).encode()


class _Board:
    """TensorBoard's file, written by the thread that calls.

    tensorboardX's own writer has a thread behind a short queue: when a full disk had ended it,
    training would wait for ever.
    """

    def __init__(self, folder: epath.Path, first_step: int):
        self._folder = folder
        with storage.writing(folder):
            if not files.is_remote(folder):
                folder.mkdir(parents=True, exist_ok=True)
            self._file = EventsWriter(f"{folder}/events")
        if first_step:  # what an earlier start has written from here on counts no more
            start = _protos.SessionLog(status=_protos.SessionLog.START)
            self._write(_protos.Event(step=first_step + 1, session_log=start))
        self._flushed = time.monotonic()

    def write(self, row: dict) -> None:
        for name, value in row.items():
            if name != "step" and value is not None:
                self._write(_protos.Event(step=row["step"], summary=scalar(name, value)))
        if time.monotonic() - self._flushed > _FLUSH_S:
            with storage.writing(self._folder):
                self._file.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        with storage.writing(self._folder):
            self._file.close()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        with storage.writing(self._folder):
            self._file.write_event(event)


def _rows_before(path: epath.Path, first_step: int) -> list[str]:
    """The rows up to a step; a line that a killed process left cut off is none of them."""
    kept = []
    rows = files.read_json_lines(path, "delete the line", torn=True) if path.exists() else ()
    for number, row in rows:
        shape = {"step": schema.whole(), "grad_norm?": schema.NUMBER}
        schema.check(row, shape, f"{path}:{number}", "delete the line")
        if row["step"] <= first_step:
            kept.append(json.dumps(row))
    return kept
