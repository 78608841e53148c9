"""How each model is laid out on a TPU slice: --config=configs/math_cot.py:llama2_70b,v5p-128.

Every line fits with the paper's batch of 128 examples, packed (python -m qalign_jax.fits;
tests/test_fits.py compiles them with -m release).
"""

from qalign_jax.parallel.topologies import parse_slice

# (model, slice): the mesh. Pure fsdp over a whole slice is two axes: over one, the compiler turns
# every gradient's scatter into an all-reduce of full size.
MESHES = {
    ("llama2_7b", "v4:2x2x1"): "fsdp:2x2",
    ("llama2_7b", "v5e:4x4"): "fsdp:4x4",
    ("llama2_7b", "v5p:2x2x1"): "fsdp:2x2",
    ("llama2_7b", "v6e:2x4"): "fsdp:2x4",
    ("llama3_8b", "v5e:4x4"): "fsdp:4x4",
    ("mistral_7b", "v5e:4x4"): "fsdp:4x4",
    ("llama2_13b", "v4:2x2x4"): "fsdp:4x4",
    ("llama2_13b", "v5e:8x8"): "fsdp:16,tensor:4",
    ("llama2_13b", "v6e:4x4"): "fsdp:4x4",
    ("llama2_70b", "v4:4x4x8"): "fsdp:32,tensor:4",
    ("llama2_70b", "v5p:2x2x4"): "fsdp:4,tensor:4",
    ("llama2_70b", "v5p:4x4x4"): "fsdp:16,tensor:4",
    ("llama2_70b", "v5e:16x16"): "fsdp:32,tensor:8",
    ("llama2_70b", "v6e:16x16"): "fsdp:32,tensor:8",
}


def mesh_for(model: str, slice_name: str) -> str:
    """The mesh of a model on a slice, by either of the slice's names.

    Raises:
      ValueError: no such slice, or none that is known to hold the model.
    """
    name = parse_slice(slice_name).name
    if (model, name) not in MESHES:
        known = [there for whose, there in MESHES if whose == model]
        raise ValueError(
            f"{model} has no setting for {name}; it has for {', '.join(known) or 'no slice'}. "
            "Name the model alone and give --config.mesh; python -m qalign_jax.fits tells what fits"
        )
    return MESHES[model, name]
