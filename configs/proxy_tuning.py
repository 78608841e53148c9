"""A large model steered by a small tuned and a small untuned one (arXiv 2405.01345; 2401.08565).

    python -m qalign_jax.run --config=configs/proxy_tuning.py:llama2_13b --workdir=runs/proxy13b \
        --config.large=/models/Llama-2-13b-hf --config.antiexpert=/models/Llama-2-7b-hf \
        --config.expert=runs/qalign7b/response_alignment --config.paths.mgsm=... \
        --config.paths.msvamp=...

The argument is the large preset and optionally a TPU slice, whose mesh is in configs/slices.py:
llama2_70b,v5p-16. The small models, `expert` tuned and `antiexpert` untuned, are LLaMA2 7B; those
of a large LLaMA2 7B are TinyLlama 1.1B, which has its tokenizer: llama2_7b,v6e-1. Of several
alphas, --config.alpha='(0.5, 1.0, 1.5)', each is a system. Nothing is trained. The paper's scores
were not available for comparison.

An expert that is an adapter, --config.expert=/models/Llama-2-7b-hf+runs/qalign7b/response_alignment
or the folder of a stage that trained one on `antiexpert`, has the small model's weights in memory
once. llama2_13b,v6e-1 is for such an expert, in int8.

Tokens are drafted by the expert, which changes none (decoding/speculative.py). For a large LLaMA2
13B the expert is half the model: --config.draft=/models/TinyLlama-1.1B drafts faster, or `lookup`,
the text so far; --config.draft_tokens=0 decodes a token at a time.
"""

from ml_collections import ConfigDict

from qalign_jax.configs import slices
from qalign_jax.recipe import parts

SMALL = {"tiny": "tiny", "llama2_7b": "tinyllama_1b"}  # beside others, LLaMA2 7B
SMALLER = {"tiny": "tiny"}  # drafts; beside others, TinyLlama 1.1B


def get_config(arg: str = "llama2_13b") -> ConfigDict:
    """The large model alone, and steered."""
    model, where, words = parts.parse_arg(arg)
    parts.check_words(words)
    config = parts.recipe("proxy_tuning_" + model, ("evaluation",))
    if where:
        config.mesh = slices.mesh_for(slices.STEERED_MESHES, model, where)
    config.large = config.expert = config.antiexpert = "random"
    config.small = SMALL.get(model, "llama2_7b")  # preset of small random models
    adapter = (model, where) in slices.STEERED_BY_ADAPTER
    config.weights_dtype = "int8" if adapter else ""
    # the rank of an expert that is an adapter, where it is random: for `fits`
    config.small_adapter = slices.RANK if adapter else 0
    config.draft, config.draft_tokens = "", "auto"
    config.alpha = parts.any_alpha(1.0)  # of several, (0.5, 1.0, 1.5), each is a system
    config.paths = ConfigDict({"mgsm": "", "msvamp": ""})
    reference = config.get_ref
    config.evaluation = parts.evaluation(
        systems={
            "large": parts.system(reference("large"), preset=model),
            "large_proxy": parts.system(
                reference("large"), reference("expert"), reference("antiexpert"),
                alpha=reference("alpha"), preset=model, small_preset=reference("small"),
                small_adapter=reference("small_adapter"),
                draft=reference("draft"), draft_preset=SMALLER.get(model, "tinyllama_1b"),
                draft_tokens=reference("draft_tokens"),
            ),
        },
        benchmarks={
            "mgsm": parts.benchmark(config.paths.get_ref("mgsm")),
            "msvamp": parts.benchmark(config.paths.get_ref("msvamp")),
        },
        weights_dtype=reference("weights_dtype"), cache_dtype=reference("weights_dtype"),
        slots=slices.STEERED_SLOTS.get((model, where), 64),
    )  # fmt: skip
    return config
