"""Rounds of speculative decoding on TPU slices: a token over the large model's own, modelled.

    python -m tests.benchmarks.speculative_rounds [--acceptance=0.93] [--only=13B]

The TPU's compiler compiles the decode loop of the large model alone and of the steered one with so
many drafts a round; milliseconds are modelled by the roofline of qalign_jax/ahead, without overlap
of the links, with caches of which all 1,152 positions are read. A draft is kept with the
probability `acceptance` where those before it are, which is the share of compared drafts that the
demo keeps (tests.benchmarks.speculative_decoding).
"""

import argparse
import os

os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}

import dataclasses

from qalign_jax.ahead.compile import Compiled, compile_round
from qalign_jax.ahead.jobs import DecodingJob
from qalign_jax.models.llama import Llama
from qalign_jax.models.presets import preset
from qalign_jax.parallel.chips import parse_slice

PROMPT, NEW = 512, 576

LARGE, SMALL = ("llama2_70b", "llama2_7b", "llama2_7b"), ("llama2_13b", "llama2_7b", "llama2_7b")
# label, models, what drafts ("" the expert), slice, mesh, and batch with drafts a round
CASES = (
    ("70B + 2 x 7B", LARGE, "", "v5p:2x2x2", "tensor:8", ((1, 8), (8, 8), (32, 4), (64, 3))),
    ("13B + 2 x 7B, 1.1B drafts", SMALL, "tinyllama_1b", "v5p:2x2x1", "tensor:4", ((1, 8), (8, 6))),
    ("13B + 2 x 7B", SMALL, "", "v5p:2x2x1", "tensor:4", ((8, 4),)),
    ("13B, 1.1B drafts", SMALL[:1], "tinyllama_1b", "v5p:2x2x1", "tensor:4", ((8, 6),)),
)
DTYPES = {"bf16": ("", ""), "int8": ("int8", "int8")}


def model(name: str) -> Llama:
    config, execution = preset(name)
    return Llama(config, dataclasses.replace(execution, dtype="bfloat16"))


def compiled(names, draft, topology, mesh, batch, dtypes, drafts, acceptance) -> Compiled:
    where = parse_slice(topology)
    job = DecodingJob(
        tuple(map(model, names)), mesh, batch, PROMPT, NEW, *dtypes,
        draft=model(draft) if draft else None, draft_tokens=drafts,
    )  # fmt: skip
    plan = job.plan(where.devices())
    return compile_round(plan, where, plan.length, drafts or 0, acceptance)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--acceptance", type=float, default=0.93)
    parser.add_argument("--only", default="", help="a part of a label")
    arguments = parser.parse_args()
    print(
        "| models, slice | dtype | batch | base, ms | plain / base | drafts | a round, ms | "
        "bytes / floor | a token / base |\n|---|---|---|---|---|---|---|---|---|"
    )
    for label, names, draft, topology, mesh, rounds in CASES:
        for dtype, dtypes in DTYPES.items():
            for batch, drafts in rounds if arguments.only in label else ():
                on, kept = (topology, mesh, batch, dtypes), arguments.acceptance
                base = compiled(names[:1], "", *on, None, kept)
                plain = compiled(names, "", *on, 0, kept)
                speculative = compiled(names, draft, *on, drafts, kept)
                alone, steered, a_round = (each.seconds[1] for each in (base, plain, speculative))
                print(
                    f"| {label}, {topology} | {dtype} | {batch} | {alone * 1e3:.1f} | "
                    f"{steered / alone:.2f} | {drafts} | {a_round * 1e3:.1f} | "
                    f"{speculative.hbm_bytes / speculative.floor_bytes:.2f} | "
                    f"{a_round / speculative.tokens / alone:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
