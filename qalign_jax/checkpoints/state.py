"""The training state of a stage at rest, on Orbax."""

from typing import Any

from orbax.checkpoint import v1 as ocp

from qalign_jax import files


class Checkpoints:
    """`checkpoints/<step>/` in a stage's folder, saved asynchronously every `every` steps.

    A checkpoint holds `params` and, until training is done, `optimizer`.
    """

    def __init__(self, stage_dir, every: int, keep: int = 1):
        self.every = every
        self._root = files.absolute(stage_dir) / "checkpoints"
        when, what = ocp.training.save_decision_policies, ocp.training.preservation_policies
        self._checkpointer = ocp.training.Checkpointer(
            self._root,
            save_decision_policy=when.FixedIntervalPolicy(1),  # pyright: ignore[reportArgumentType]
            preservation_policy=what.LatestN(keep),  # pyright: ignore[reportArgumentType]
            cleanup_tmp_directories=True,
        )

    def latest(self) -> int | None:
        """The newest complete step, None before the first."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, step: int, parts: dict[str, Any], final: bool = False) -> None:
        """Saves the parts of a state by name, trees of arrays; returns at once unless final."""
        if step == self.latest():
            return
        self._checkpointer.save_checkpointables_async(step, parts, force=True)
        if final:
            self.wait()

    def restore(self, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
        """The parts at `step`, with the shapes, dtypes and shardings of `abstract`."""
        return self._checkpointer.load_checkpointables(step, abstract)

    def wait(self) -> None:
        """Returns when everything saved is on disk."""
        self._checkpointer.wait()

    def close(self) -> None:
        self._checkpointer.close()
