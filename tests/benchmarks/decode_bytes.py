"""Bytes that a decode step moves on TPU slices, over its floor: weights once, live caches once.

    python -m tests.benchmarks.decode_bytes [--only=v5p:2x2x2]

The TPU's compiler compiles the decode loop; its bytes are read from the compiled text, and its
milliseconds are modelled by the roofline of qalign_jax/ahead, without overlap of the links. All
are of one device and token, in a call of 64 tokens with full caches of 1,024 positions; the second
table reads so many of them as the longest live row has. In the third the expert is the anti-expert
with an adapter of rank 64, whose weights are read once for both.
"""

import argparse
import os

os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}

import dataclasses

from qalign_jax.ahead.compile import Compiled, compile_round
from qalign_jax.ahead.jobs import DecodingJob
from qalign_jax.models.adapter import Adapter
from qalign_jax.models.llama import Llama
from qalign_jax.models.presets import preset
from qalign_jax.parallel.chips import parse_slice

# large model, slice, decoding mesh
SLICES = (
    ("llama2_70b", "v5p:2x2x2", "tensor:8"),
    ("llama2_70b", "v4:2x2x4", "data:2,tensor:8"),
    ("llama2_70b", "v6e:4x4", "data:2,tensor:8"),
    ("llama2_13b", "v4:2x2x4", "data:2,tensor:8"),
    ("llama2_13b", "v6e:4x4", "data:2,tensor:8"),
    ("llama2_13b", "v5e:8x8", "data:8,tensor:8"),
)
BATCHES = (8, 64, 128)
DTYPES = {"bf16": ("", ""), "int8 cache": ("", "int8"), "int8": ("int8", "int8")}
LENGTH = 1024
SMALL, ADAPTED = "llama2_7b", "llama2_7b with an adapter"


def step(models: list[str], topology: str, mesh: str, batch: int, dtypes, room: int) -> Compiled:
    decoded = []
    for name in models:
        adapter = Adapter(64) if name == ADAPTED else None
        config, execution = preset(SMALL if adapter else name)
        execution = dataclasses.replace(execution, dtype="bfloat16")
        decoded.append(Llama(config, execution, adapter=adapter))
    where = parse_slice(topology, 1)
    # the prompts' part of the length changes no decode step
    job = DecodingJob(
        tuple(decoded), mesh, batch, LENGTH // 2, LENGTH // 2, *dtypes, draft_tokens=0,
        shared=ADAPTED in models,
    )  # fmt: skip
    return compile_round(job.plan(where.devices()), where, room)


def over_floor(found: Compiled) -> str:
    return f"{found.hbm_bytes / found.floor_bytes:.2f}" if found.hbm_bytes else "does not fit"


def milliseconds(found: Compiled) -> str:
    return f"{found.seconds[1] * 1e3:.1f}" if found.seconds else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="one slice")
    slices = [each for each in SLICES if parser.parse_args().only in ("", each[1])]
    print(
        "| model, slice | batch | dtype | base: ms | bytes / floor | proxy-tuned: ms | "
        "bytes / floor | proxy / base |\n|---|---|---|---|---|---|---|---|"
    )
    for large, topology, mesh in slices:
        for batch in BATCHES:
            for label, dtypes in DTYPES.items():
                base, proxy = (
                    step(models, topology, mesh, batch, dtypes, LENGTH)
                    for models in ([large], [large, SMALL, SMALL])
                )
                times = "-"
                if base.seconds and proxy.seconds:
                    times = f"{proxy.seconds[1] / base.seconds[1]:.2f}"
                print(
                    f"| {large}, {topology} | {batch} | {label} | {milliseconds(base)} | "
                    f"{over_floor(base)} | {milliseconds(proxy)} | {over_floor(proxy)} | {times} |",
                    flush=True,
                )
    print("\n| slice, batch 64 | longest live row | MB a token | ms |\n|---|---|---|---|")
    for large, topology, mesh in slices[:1]:
        for room in (256, 512, 1024):
            models = [large, SMALL, SMALL]
            found = step(models, topology, mesh, 64, DTYPES["bf16"], room)
            print(
                f"| {topology} | {room} | {(found.hbm_bytes or 0) / 1e6:,.0f} | "
                f"{milliseconds(found)} |",
                flush=True,
            )
    print(
        "\n| slice | batch | dtype | base: ms | two small: ms | over base | an adapter: ms | "
        "over base | bytes / floor |\n|---|---|---|---|---|---|---|---|---|"
    )
    for large, topology, mesh in slices[:1]:
        for label in ("bf16", "int8"):
            for batch in (1, 8, 32):
                base, two, adapted = (
                    step(models, topology, mesh, batch, DTYPES[label], LENGTH)
                    for models in ([large], [large, SMALL, SMALL], [large, ADAPTED, SMALL])
                )
                alone, *steered = (each.seconds[1] for each in (base, two, adapted) if each.seconds)
                figures = (f"{each * 1e3:.1f} | {each / alone:.2f}" for each in steered)
                print(
                    f"| {topology} | {batch} | {label} | {alone * 1e3:.1f} | "
                    f"{' | '.join(figures)} | {over_floor(adapted)} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
