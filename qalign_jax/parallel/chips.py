"""Chips and their published peaks, and TPU slices by name, with devices to compile for."""

import dataclasses
import math
import os

from jax.experimental import topologies

GIB = 2**30
LARGEST = 8960  # chips, a whole pod of v5p


@dataclasses.dataclass(frozen=True)
class Chip:
    """A generation of TPUs, by device; a v4's two cores are one device (megacore).

    Published peaks; `hbm_gib` is the memory that the compiler allows a program.
    """

    device_kinds: tuple[str, ...]  # parts of jax.Device.device_kind
    tflops: float  # bf16
    hbm_gib: float
    hbm_gb_s: float
    ici_gb_s: float  # all links of a device, both directions together
    dcn_gb_s: float  # a device's share of its host's network, one direction
    dimensions: int  # of the torus
    cores: int  # that Google's slice names count, a chip
    slices: tuple[str, ...]  # the usual ones, small to large


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_DEEP = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
CHIPS = {
    "v4": Chip(("TPU v4",), 275, 30.75, 1228, 540, 6.25, 3, 2, _DEEP),
    "v5e": Chip(("TPU v5 lite", "TPU v5e"), 197, 15.75, 819, 400, 3.125, 2, 1, _FLAT),
    "v5p": Chip(("TPU v5",), 459, 95.73, 2765, 1200, 6.25, 3, 2, _DEEP),
    "v6e": Chip(("TPU v6",), 918, 31.24, 1638, 800, 12.5, 2, 1, _FLAT),
}
# bf16 TFLOP/s and GB/s of memory of devices that are in no slice of CHIPS, by a part of
# jax.Device.device_kind.
OTHER_PEAKS: dict[str, tuple[float, float]] = {
    "TPU7x": (1153, 3690), "H100": (989, 3350), "H200": (989, 4800), "A100": (312, 2039),
}  # fmt: skip


def peaks(device_kind: str) -> tuple[float, float] | None:
    """bf16 TFLOP/s and GB/s of memory of one device, None where its kind is not in the tables."""
    # the longest name first: "TPU v5 lite" is no "TPU v5"
    known: dict[str, tuple[float, float]] = {
        kind: (chip.tflops, chip.hbm_gb_s) for chip in CHIPS.values() for kind in chip.device_kinds
    }
    known |= OTHER_PEAKS
    return next((known[kind] for kind in sorted(known, key=len)[::-1] if kind in device_kind), None)


@dataclasses.dataclass(frozen=True)
class Slice:
    """A slice of TPU chips, perhaps several of them joined over DCN."""

    chip: str
    shape: tuple[int, ...]
    count: int = 1

    @property
    def name(self) -> str:
        return f"{self.chip}:{'x'.join(map(str, self.shape))}"

    @property
    def size(self) -> int:
        """Devices of all slices."""
        return math.prod(self.shape) * self.count

    def devices(self) -> list:
        """Abstract devices to compile for; libtpu describes them without a TPU.

        Raises:
          ValueError: libtpu is not installed, or knows no such slice.
        """
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        options: dict[str, str | int] = (
            {"chip_config_name": "megacore"} if self.chip == "v4" else {}
        )
        if self.count > 1:
            options["num_slices"] = self.count
        try:
            return list(topologies.get_topology_desc(self.name, "tpu", **options).devices)
        except Exception as error:  # the plugin raises several kinds, RuntimeErrors mostly
            text = str(error).splitlines()[0] if str(error) else repr(error)
            if "TPU support not installed" in text or "libtpu" in text:
                text = "libtpu is needed, the TPU compiler: pip install libtpu"
            raise ValueError(
                f"--topology={self.name}: {text}; the usual ones are {_usual(self.chip)}"
            ) from None

    def larger(self) -> list["Slice"]:
        """The next two usual sizes of this chip, one slice of each."""
        bigger = [
            Slice(self.chip, _shape(shape))
            for shape in CHIPS[self.chip].slices
            if math.prod(_shape(shape)) > self.size
        ]
        return bigger[:2]


# Keeps libtpu from looking for a TPU, and two processes from excluding each other.
_QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def parse_slice(text: str, count: int = 1) -> Slice:
    """A slice from `v5p:4x4x4`, or from Google's name for it, `v5p-128`.

    v4 and v5p names count cores, two a chip; v5e and v6e names count chips.

    Raises:
      ValueError: an unknown chip or size; the message lists the known ones.
    """
    chip, mark, rest = text.partition(":" if ":" in text else "-")
    chip = {"v5litepod": "v5e"}.get(chip, chip)
    if chip not in CHIPS or not mark:
        raise ValueError(
            f"no slice {text!r}; the chips are {', '.join(CHIPS)}, a slice is v5p:4x4x4 or v5p-128"
        )
    known = CHIPS[chip]
    if mark == "-":
        sizes = {math.prod(_shape(shape)) * known.cores: shape for shape in known.slices}
        if not rest.isdigit() or int(rest) not in sizes:
            names = ", ".join(f"{chip}-{size} ({shape})" for size, shape in sizes.items())
            raise ValueError(f"no slice {text!r}; there are {names}")
        rest = sizes[int(rest)]
    try:
        shape = _shape(rest)
    except ValueError:
        shape = ()
    if len(shape) != known.dimensions or min(shape) < 1:
        raise ValueError(
            f"no slice {text!r}; a {chip} slice has {known.dimensions} dimensions, for example "
            f"{_usual(chip)}"
        )
    if math.prod(shape) > LARGEST:
        raise ValueError(f"no slice {text!r}; the largest have {LARGEST:,} chips")
    if count < 1:
        raise ValueError(f"--slices={count}: expected at least 1")
    return Slice(chip, shape, count)


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split("x"))


def _usual(chip: str) -> str:
    return ", ".join(f"{chip}:{shape}" for shape in CHIPS[chip].slices)
