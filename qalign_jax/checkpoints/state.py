"""The training state of a stage at rest, on Orbax."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import jax
from absl import logging
from orbax.checkpoint import v1 as ocp

from qalign_jax import files
from qalign_jax.checkpoints import integrity
from qalign_jax.faults import storage
from qalign_jax.faults.checksums import Damaged
from qalign_jax.parallel import barrier

AT_LEAST = 2  # checkpoints kept while training: the one before is there if the newest is damaged


class Checkpoints:
    """`checkpoints/<step>/` in a stage's folder, saved asynchronously every `every` steps.

    A checkpoint holds `params` and, until training is done, `optimizer`, and the checksums of
    their arrays. The newest `keep` stay, and at least two until `trim`.
    """

    def __init__(self, stage_dir, every: int, keep: int = 1):
        self.every, self._keep = every, keep
        self._stage_dir = files.absolute(stage_dir)
        when, what = ocp.training.save_decision_policies, ocp.training.preservation_policies
        kept = what.LatestN(max(keep, AT_LEAST))
        self._checkpointer = ocp.training.Checkpointer(
            self._stage_dir / "checkpoints",
            save_decision_policy=when.FixedIntervalPolicy(1),  # pyright: ignore[reportArgumentType]
            preservation_policy=kept,  # pyright: ignore[reportArgumentType]
            cleanup_tmp_directories=True,
        )

    def steps(self) -> list[int]:
        """The complete steps, the newest first."""
        return sorted((each.step for each in self._checkpointer.checkpoints), reverse=True)

    def save(self, step: int, parts: dict[str, Any], final: bool = False) -> None:
        """Saves the parts of a state by name, trees of arrays; in the background unless final.

        Raises:
          FloatingPointError: a value is not finite, as after an update that overflowed.
          StorageFailed: there is no space for this checkpoint, or was none for the one before.
        """
        if step in self.steps():
            return
        try:
            checksums: Any = integrity.metadata(step, parts)
        except FloatingPointError as error:
            raise FloatingPointError(f"after the update {error}, and it is not saved") from None
        with self._writing():
            self._checkpointer.save_checkpointables_async(
                step, parts, force=True, custom_metadata=checksums
            )
        if final:
            self.wait()

    def trim(self) -> None:
        """Deletes all but the newest `keep` checkpoints, of a stage that is done."""
        with self._writing():
            for old in self.steps()[self._keep :]:
                self._checkpointer.delete(old)

    def restore(self, abstract: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
        """The newest step that is whole, and its parts; None where nothing is saved.

        Damaged steps that are newer are moved to `damaged/` in the stage's folder.

        Args:
          abstract: shapes, dtypes and shardings of all parts; the last step has `params` alone.

        Raises:
          Damaged: no step is whole.
        """
        damaged: dict[int, Damaged] = {}
        for step in self.steps():
            try:
                parts = integrity.load(self._stage_dir / "checkpoints" / str(step), abstract)
            except Damaged as error:
                logging.error("%s", error)
                damaged[step] = error
                continue
            for number in damaged:
                self._set_aside(number)
            if damaged:
                self._checkpointer.reload()
                logging.error("%s: goes back to step %d, which is whole", self._stage_dir, step)
            return step, parts
        if damaged:
            reasons = "; ".join(str(error)[:200] for error in damaged.values())
            raise Damaged(
                f"{self._stage_dir}: no checkpoint is whole; delete the folder to train this stage "
                f"from its start ({reasons})"
            )
        return None

    def wait(self) -> None:
        """Returns when everything saved is on disk.

        Raises:
          StorageFailed: as `save`.
        """
        with self._writing():
            self._checkpointer.wait()

    def close(self) -> None:
        with self._writing():
            self._checkpointer.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Removes the half of a checkpoint for whose other half there was no space.

        Orbax writes in threads: the error of one save is raised by the next one, or by `wait`, and
        other threads may still write then, and make folders again that were removed.
        """
        folder = self._stage_dir / "checkpoints"
        try:
            with storage.writing(folder):
                yield
        except storage.StorageFailed:
            for _ in range(20):
                if not (halves := list(folder.glob("*.orbax-checkpoint-tmp"))):
                    break
                with contextlib.suppress(OSError):  # another process removes them too
                    for half in halves:
                        half.rmtree(missing_ok=True)
                time.sleep(0.1)
            raise

    def _set_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            aside = self._stage_dir / "damaged"
            if not aside.is_dir():
                aside.unlink(missing_ok=True)
            aside.mkdir(parents=True, exist_ok=True)
            taken = {path.name for path in aside.iterdir()}
            names = (f"{step}{'-' * (n > 0)}{n or ''}" for n in range(len(taken) + 1))
            target = aside / next(name for name in names if name not in taken)
            (self._stage_dir / "checkpoints" / str(step)).rename(target)
            logging.error("step %d is now %s", step, target)
        barrier.wait(f"step {step} is set aside")
