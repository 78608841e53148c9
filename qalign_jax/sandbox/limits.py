"""What a solution may use, and what comes of a block of it."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of one solution; it can start no further process or thread."""

    seconds: float = 10.0  # wall time of a block
    cpu_seconds: int = 60  # of a solution, all blocks together
    memory_mb: int = 1024  # address space
    scratch_mb: int = 16  # its only writable folder, in memory
    output_characters: int = 1000  # kept of a block's output, and of its value
    code_characters: int = 100_000  # of a block

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not 0 < value < float("inf"):
                raise ValueError(f"{field.name}={value!r}: expected a finite number above 0")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a block.

    status:
      ok: the block ran to its end.
      error: it raised an exception, the last line of `output`; or it was not run, for the reason
        in `output`.
      memory: the exception was a MemoryError.
      timeout: no result in time; what it printed is lost.
      killed: the process ended (a crash, an exit, the limit of CPU time), or what came from it was
        no result; what it printed is lost.
    output: what it printed, and the value of a last expression as a notebook shows it; cut behind
      `output_characters`, with `<output cut>` behind the cut.
    value: str() of what the function that `run` was to call returned, cut likewise; else None.

    A program can write any ok, error or memory of its own, with any output and value; the host
    alone decides timeout and killed.
    """

    status: str
    output: str
    value: str | None = None
