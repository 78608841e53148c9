"""The meshes of each model on TPU slices: --config=configs/math_cot.py:llama2_70b,v5p-128.

Every entry fits with the paper's batch of 128 examples, packed (python -m qalign_jax.fits;
pytest -m release tests/test_fits.py compiles all of them).
"""

from typing import NamedTuple

# (model, slice): (training mesh, decoding mesh).
# Training: pure fsdp over a whole slice takes two axes: over one axis, the compiler turns the
# reduce-scatter of every gradient into an all-reduce of full size.
# Decoding: fsdp would gather every weight for every token; tensor reads it from local memory.
MESHES = {
    ("smollm2_360m", "v5e:1x1"): ("fsdp:1", "tensor:1"),
    ("tinyllama_1b", "v6e:1x1"): ("fsdp:1", "tensor:1"),
    ("llama2_7b", "v4:2x2x1"): ("fsdp:2x2", "tensor:4"),
    ("llama2_7b", "v5e:4x4"): ("fsdp:4x4", "data:2,tensor:8"),
    ("llama2_7b", "v5p:2x2x1"): ("fsdp:2x2", "tensor:4"),
    ("llama2_7b", "v6e:2x4"): ("fsdp:2x4", "tensor:8"),
    ("llama3_8b", "v5e:4x4"): ("fsdp:4x4", "data:2,tensor:8"),
    ("mistral_7b", "v5e:4x4"): ("fsdp:4x4", "data:2,tensor:8"),
    ("llama2_13b", "v4:2x2x4"): ("fsdp:4x4", "data:2,tensor:8"),
    ("llama2_13b", "v5e:8x8"): ("fsdp:16,tensor:4", "data:8,tensor:8"),
    ("llama2_13b", "v6e:4x4"): ("fsdp:4x4", "data:2,tensor:8"),
    ("llama2_70b", "v4:4x4x8"): ("fsdp:32,tensor:4", "data:16,tensor:8"),
    ("llama2_70b", "v5p:2x2x4"): ("fsdp:4,tensor:4", "data:2,tensor:8"),
    ("llama2_70b", "v5p:4x4x4"): ("fsdp:16,tensor:4", "data:8,tensor:8"),
    ("llama2_70b", "v5e:16x16"): ("fsdp:32,tensor:8", "data:16,fsdp:2,tensor:8"),
    ("llama2_70b", "v6e:16x16"): ("fsdp:32,tensor:8", "data:32,tensor:8"),
}


class Adapted(NamedTuple):
    """How adapters are trained on a slice that is too small for training all weights.

    `weights_dtype` is that of the frozen matrices, in training and in decoding, where caches are
    as narrow; `slots` are the rows decoded at once.
    """

    training: str
    decoding: str
    weights_dtype: str
    micro_batches: int
    slots: int


# (model, slice): the stages train adapters there.
ADAPTED = {
    ("llama2_7b", "v5e:1x1"): Adapted("fsdp:1", "tensor:1", "int8", 9, 16),
    ("llama2_7b", "v6e:1x1"): Adapted("fsdp:1", "tensor:1", "", 9, 16),
    ("llama2_13b", "v6e:1x1"): Adapted("fsdp:1", "tensor:1", "int8", 9, 16),
    ("llama2_70b", "v5e:4x4"): Adapted("fsdp:4x4", "data:2,tensor:8", "int8", 1, 32),
    ("llama2_70b", "v6e:2x4"): Adapted("fsdp:2x4", "tensor:8", "", 1, 32),
}
# The adapters, and their learning rate: QLoRA's for 7B and 13B (arXiv 2305.14314, table 9). A few
# matrices of rank 64 need larger steps than all weights, which take the paper's 2e-5.
RANK, LEARNING_RATE = 64, 2e-4

# (large model, slice): the mesh for decoding with two small models, LLaMA2 7B or, beside a large
# LLaMA2 7B, TinyLlama 1.1B.
STEERED_MESHES = {
    ("llama2_7b", "v6e:1x1"): "tensor:1",
    ("llama2_13b", "v4:2x2x4"): "data:2,tensor:8",
    ("llama2_13b", "v5e:8x8"): "data:8,tensor:8",
    ("llama2_13b", "v5p:2x2x1"): "tensor:4",
    ("llama2_13b", "v6e:1x1"): "tensor:1",
    ("llama2_13b", "v6e:4x4"): "data:2,tensor:8",
    ("llama2_70b", "v4:2x2x4"): "data:2,tensor:8",
    ("llama2_70b", "v5p:2x2x2"): "tensor:8",
    ("llama2_70b", "v6e:4x4"): "data:2,tensor:8",
}
# The rows decoded at once where the default of 64 does not fit.
STEERED_SLOTS = {("llama2_7b", "v6e:1x1"): 8, ("llama2_13b", "v6e:1x1"): 8}
# Where the expert is an adapter of the anti-expert, and weights and caches are int8.
STEERED_BY_ADAPTER = {("llama2_13b", "v6e:1x1")}


def mesh_for(meshes: dict, model: str, name: str):
    """The entry of `meshes` for a model on a slice, which is named by its shape.

    Raises:
      ValueError: `meshes` has no such entry; those that it has.
    """
    if (model, name) not in meshes:
        known = [slice_name for preset, slice_name in meshes if preset == model]
        raise ValueError(
            f"{model} has no setting for {name}; it has for {', '.join(known) or 'no slice'}. "
            "Name the model alone and give --config.mesh; python -m qalign_jax.fits tells what fits"
        )
    return meshes[model, name]
