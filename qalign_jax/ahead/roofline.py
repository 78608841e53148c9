"""A roofline model of a compiled program's time, from published peaks; not a measurement."""

from jax.sharding import Mesh

from qalign_jax.ahead.cost import Program
from qalign_jax.parallel.chips import Chip


def model_time(chip: Chip, flops: float, hbm_bytes: float, on_links: float):
    """Modelled seconds of a program on a device: (all overlapped, nothing overlapped).

    Arithmetic and HBM are at their published peaks and run at once on the chip, so the slower of
    the two counts; the seconds on the links are added to it, or hidden behind it.
    """
    on_chip = max(flops / (chip.tflops * 1e12), hbm_bytes / (chip.hbm_gb_s * 1e9))
    return max(on_chip, on_links), on_chip + on_links


def link_seconds(program: Program, chip: Chip, mesh: Mesh) -> float:
    """Modelled seconds of a program's collectives, one after the other, by ring algorithms.

    A collective sends on the links of the torus axes along which its devices lie, both ways, at
    their published peak; where they lie in several slices, over DCN. Rings are taken as closed:
    those of small slices (below 16 on a side for v5e and v6e) are not, and take up to twice as
    long there.
    """
    devices = list(mesh.devices.flat)
    seconds = 0.0
    for each in program.collectives:
        members = [devices[place] for place in each.members]
        if len({getattr(device, "slice_index", 0) for device in members}) > 1:
            gb_s = chip.dcn_gb_s
        else:
            spanned = sum(
                len(set(column)) > 1 for column in zip(*(d.coords for d in members), strict=True)
            )
            gb_s = chip.ici_gb_s / 2 * max(spanned, 1) / chip.dimensions
        seconds += each.wire_bytes * each.times / (gb_s * 1e9)
    return seconds
