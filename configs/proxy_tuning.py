"""A large model steered by what tuning did to a small one (arXiv 2405.01345; 2401.08565).

    python -m qalign_jax.run --config=configs/proxy_tuning.py:llama2_13b --workdir=runs/proxy13b \
        --config.large=/models/Llama-2-13b-hf --config.antiexpert=/models/Llama-2-7b-hf \
        --config.expert=runs/qalign7b/response_alignment --config.paths.mgsm=... \
        --config.paths.msvamp=...

The argument names the large preset, and perhaps the TPU slice, whose mesh it takes from
configs/slices.py: llama2_70b,v5p-16. The small ones are LLaMA2 7B, `expert` tuned and `antiexpert`
untuned. Nothing is trained. No table of the paper's could be had to stand beside the result.
"""

from ml_collections import ConfigDict

from qalign_jax.configs import common, slices
from qalign_jax.models.presets import preset


def get_config(arg: str = "llama2_13b") -> ConfigDict:
    """The large model alone, and steered."""
    arg, _, slice_name = arg.partition(",")
    preset(arg)  # raises on a name that is not there
    config = common.recipe("proxy_tuning_" + arg, ("evaluation",))
    if slice_name:
        config.mesh = slices.mesh_for(slices.STEERED_MESHES, arg, slice_name)
    config.large = config.expert = config.antiexpert = "random"
    config.small = "tiny" if arg == "tiny" else "llama2_7b"  # where the small ones are random
    config.alpha = 1.0
    config.paths = ConfigDict({"mgsm": "", "msvamp": ""})
    reference = config.get_ref
    config.evaluation = common.evaluation(
        systems={
            "large": common.system(reference("large"), preset=arg),
            "large_proxy": common.system(
                reference("large"), reference("expert"), reference("antiexpert"),
                alpha=reference("alpha"), preset=arg, small_preset=reference("small"),
            ),
        },
        benchmarks={
            "mgsm": common.benchmark(config.paths.get_ref("mgsm")),
            "msvamp": common.benchmark(config.paths.get_ref("msvamp")),
        },
    )  # fmt: skip
    return config
