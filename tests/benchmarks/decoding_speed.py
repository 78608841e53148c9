"""Decoding on this CPU against transformers: a step, a benchmark's prompts, proxy-tuning.

    python -m tests.benchmarks.decoding_speed [--parts=step,benchmark,proxy] [--rounds=5]

Both sides decode the same prompts with the same random weights in float32, on as many threads, one
after the other in every round; times are medians, with their range. The floor of a step is what it
must read, each weight once and the cached tokens once, at the bandwidth that a sum over an array of
the weights' size reaches in the same round.
"""

import argparse
import dataclasses
import itertools
import json
import os
import pathlib
import statistics
import time

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
import torch

from qalign_jax.data.prompts import render
from qalign_jax.data.tokenizer import load_tokenizer
from qalign_jax.decoding.combine import FirstModel, ProxyTuning
from qalign_jax.decoding.engine import STEPS_PER_CALL, Engine
from qalign_jax.decoding.plan import room_for, with_room
from qalign_jax.decoding.requests import Request, Rows
from qalign_jax.decoding.slots import advance, empty_slots, fill
from qalign_jax.models.config import Execution, LlamaConfig
from qalign_jax.models.llama import Llama
from qalign_jax.models.params import init_params
from tests.reference import to_transformers

# 58 million parameters, of which a LLaMA2 vocabulary's tables are 33
MEDIUM = LlamaConfig(
    vocab_size=32_000, d_model=512, n_layers=8, n_heads=8, n_kv_heads=8, d_ff=1376, head_size=64,
    max_length=2048,
)  # fmt: skip
SMALL = dataclasses.replace(MEDIUM, d_model=384, n_heads=6, n_kv_heads=6, d_ff=1024, n_layers=6)
F32 = Execution(dtype="float32")
DATA = pathlib.Path(os.environ.get("QALIGN_TEST_DATA", "../shared/data"))
CONTEXT = 200  # tokens in front of the steps that are timed
NEVER = 10**6  # an EOS id outside of the vocabulary
STEPS = 16


def prompts_of(lengths, vocab_size: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, vocab_size, length).tolist() for length in lengths]


def interleaved(rounds: int, **sides) -> dict[str, list[float]]:
    """Seconds of each side, round by round; the first round warms up and is dropped."""
    seconds = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, run in sides.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return {name: each[1:] for name, each in seconds.items()}


def shown(seconds: list[float], unit: float = 1e3) -> str:
    low, middle, high = (unit * f(seconds) for f in (min, statistics.median, max))
    return f"{middle:.1f} ({low:.1f} to {high:.1f})"


def prefilled(engine: Engine, prompts, room: int, limit: int):
    """The engine's slots with prompts in them, the plan, and the arguments of its programs."""
    plan = with_room(engine._plan, room)
    constant = (engine._params, engine._combine, jax.random.key(0), engine._eos_ids)
    slots = empty_slots(plan)
    requests = [Request(number, prompt, limit) for number, prompt in enumerate(prompts)]
    for start, part in Rows(plan, 0, requests).parts():
        slots = fill(plan, start, *constant, slots, **part)
    return plan, constant, slots


class Torch:
    """Models of transformers that decode prompts of one length together, as the reference does."""

    def __init__(self, models, alpha: float = 1.0):
        self._models, self._alpha = models, alpha

    @torch.no_grad()
    def prefill(self, prompts) -> None:
        tokens = torch.tensor(prompts)
        found = [model(tokens, use_cache=True) for model in self._models]
        self._caches = [each.past_key_values for each in found]
        self._next = self._choose(found)

    def _choose(self, found):
        logits = [each.logits[:, -1] for each in found]
        if len(logits) == 3:
            logits = [logits[0] + self._alpha * (logits[1] - logits[2])]
        return logits[0].argmax(-1, keepdim=True)

    @torch.no_grad()
    def steps(self, count: int) -> None:
        token = self._next
        for _ in range(count):
            found = [
                model(token, past_key_values=cache, use_cache=True)
                for model, cache in zip(self._models, self._caches, strict=True)
            ]
            token = self._choose(found)
        for cache in self._caches:
            cache.crop(-count)


def compare_steps(models, combine, batch: int, room: int, rounds: int) -> dict[str, list[float]]:
    """Seconds a step of ours, of transformers, and of reading what a step must read."""
    prompts = prompts_of([CONTEXT] * batch, models[0][0].vocab_size)
    ours = [(Llama(config, F32), params) for config, params in models]
    engine = Engine(ours, combine, eos_ids=(NEVER,), slots=batch, draft_tokens=0)
    plan, constant, slots = prefilled(engine, prompts, room, limit=10**6)
    read = room_for(plan, CONTEXT + STEPS + 1)
    state = [slots, slots.positions, slots.generated]
    state[1:] = [np.asarray(each) for each in state[1:]]

    def ours_steps():
        slots, positions, generated = state
        slots = slots.replace(positions=jnp.array(positions), generated=jnp.array(generated))
        state[0], report = advance(plan, read, 0, *constant, slots, 0, STEPS)
        jax.block_until_ready(report)

    reference = Torch([to_sdpa(config, params) for config, params in models])
    reference.prefill(prompts)
    moved = sum(leaf.nbytes for leaf in jax.tree.leaves(engine._params))
    # of the embedding only the rows of the tokens
    moved -= sum(config.padded_vocab * config.d_model * 4 for config, _ in models)
    for config, _ in models:
        moved += 2 * 4 * batch * CONTEXT * config.n_layers * config.n_kv_heads * config.head_size
    array = jnp.ones(moved // 4, jnp.float32)
    total = jax.jit(jnp.sum)
    seconds = interleaved(
        rounds,
        ours=ours_steps,
        transformers=lambda: reference.steps(STEPS),
        floor=lambda: [total(array).block_until_ready() for _ in range(STEPS)],
    )
    return {name: [one / STEPS for one in each] for name, each in seconds.items()}


def to_sdpa(config, params):
    model = to_transformers(config, params)
    model.set_attn_implementation("sdpa")
    return model


def params_of(config, seed=0):
    return init_params(config, jax.random.key(seed))


def ratio(seconds, over: str = "transformers", under: str = "ours") -> str:
    each = [a / b for a, b in zip(seconds[over], seconds[under], strict=True)]
    return f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})"


def steps(rounds: int) -> None:
    print("| batch, room | ours, ms a step | transformers | floor | over the floor | over ours |")
    print("|---|---|---|---|---|---|")
    model = [(MEDIUM, params_of(MEDIUM))]
    for batch, room in ((1, 384), (8, 384), (8, 1152)):
        found = compare_steps(model, FirstModel(), batch, room, rounds)
        print(
            f"| {batch}, {room} | {shown(found['ours'])} | {shown(found['transformers'])} | "
            f"{shown(found['floor'])} | {ratio(found, 'ours', 'floor')} | {ratio(found)} |",
            flush=True,
        )


def proxies(rounds: int) -> None:
    print("| batch | ours, ms a step | three models of transformers | transformers / ours |")
    print("|---|---|---|---|")
    models = [
        (MEDIUM, params_of(MEDIUM)),
        (SMALL, params_of(SMALL, 1)),
        (SMALL, params_of(SMALL, 2)),
    ]
    for batch in (1, 8):
        found = compare_steps(models, ProxyTuning(1.0), batch, 384, rounds)
        print(
            f"| {batch} | {shown(found['ours'])} | {shown(found['transformers'])} | "
            f"{ratio(found)} |",
            flush=True,
        )


def benchmark(rounds: int) -> None:
    """48 questions of mGSM in 16 slots, against `generate` in static batches of 16, left-padded."""
    tokenizer = load_tokenizer(DATA / "tokenizers" / "llama2")
    questions = [
        line.split("\t")[0]
        for language in ("en", "de", "zh", "th")
        for line in (DATA / "mgsm" / "tsv" / f"mgsm_{language}.tsv").read_text().splitlines()[:12]
    ]
    solutions = (DATA / "gsm8k" / "test.jsonl").read_text().splitlines()[: len(questions)]
    texts = [json.loads(line)["answer"] for line in solutions]
    spread = [len(ids) for ids in tokenizer.encode_prompts(texts)]
    prompts = tokenizer.encode_prompts([render("paper", question) for question in questions])
    print("| answers | ours, tokens/s | transformers | ours / transformers |\n|---|---|---|---|")
    for label, limits in (("all of 160 tokens", [160] * len(prompts)),
                          (f"GSM8K's, {min(spread)} to {max(spread)} tokens", spread)):  # fmt: skip
        params = params_of(MEDIUM)
        engine = Engine([(Llama(MEDIUM, F32), params)], eos_ids=(NEVER,), slots=16)
        requests = [Request(*each) for each in zip(itertools.count(), prompts, limits)]
        requests.sort(key=lambda request: -len(request.prompt))
        plan = with_room(engine._plan, max(len(r.prompt) + r.limit for r in requests))
        model = to_sdpa(MEDIUM, params)

        def ours(engine=engine, plan=plan, requests=requests):
            told = engine._run(plan, requests, max(r.limit for r in requests), None, STEPS_PER_CALL)
            assert sum(len(each.tokens) for each in told) == sum(r.limit for r in requests)

        @torch.no_grad()
        def theirs(model=model, requests=requests):
            for first in range(0, len(requests), 16):
                batch = requests[first : first + 16]
                longest = max(len(r.prompt) for r in batch)
                rows = [[0] * (longest - len(r.prompt)) + r.prompt for r in batch]
                masks = [[int(i >= longest - len(r.prompt)) for i in range(longest)] for r in batch]
                model.generate(
                    torch.tensor(rows), attention_mask=torch.tensor(masks), do_sample=False,
                    max_new_tokens=max(r.limit for r in batch), eos_token_id=None, pad_token_id=0,
                )  # fmt: skip

        seconds = interleaved(rounds, ours=ours, transformers=theirs)
        rates = {name: [sum(limits) / s for s in each] for name, each in seconds.items()}
        print(
            f"| {label} | {shown(rates['ours'], 1)} | {shown(rates['transformers'], 1)} | "
            f"{ratio(seconds)} |",
            flush=True,
        )


PARTS = {"step": steps, "benchmark": benchmark, "proxy": proxies}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    for part in arguments.parts.split(","):
        PARTS[part](arguments.rounds)
