"""The paper's two stages and its baseline, which the scenarios share."""

from ml_collections import ConfigDict

from qalign_jax.configs import slices
from qalign_jax.recipe import parts


def recipe(
    name: str,
    arg: str,
    pairs: ConfigDict,
    responses: ConfigDict,
    benchmarks: dict[str, ConfigDict],
) -> tuple[ConfigDict, list[str]]:
    """Question alignment, response alignment, that alone, the evaluation, and representations.

    Hidden states are those of the first benchmark's questions, before and after each stage.
    `pairs`, `responses` and `benchmarks` take their paths from `config.paths`, under the names
    question_pairs, responses and those of the benchmarks.

    Args:
      arg: a model preset, then a TPU slice and words, in any order, between commas.

    Returns:
      the recipe, and the argument's words.
    """
    model, where, words = parts.parse_arg(arg)
    stages = (
        "question_alignment", "response_alignment", "response_alignment_only", "evaluation",
        "representations",
    )  # fmt: skip
    config = parts.recipe(f"{name}_{model}", stages)
    if where:
        config.mesh, decoding = slices.mesh_for(slices.MESHES, model, where)
    config.base = "random"  # a Hugging Face or Orbax directory of the untuned model
    names = ("question_pairs", "responses", *benchmarks)
    config.paths = ConfigDict(dict.fromkeys(names, ""))
    path, base = config.paths.get_ref, config.get_ref("base")
    config.responses = responses.name  # the data set that reads paths.responses
    responses.name, responses.path = config.get_ref("responses"), path("responses")
    pairs.path = path("question_pairs")
    for benchmark, options in benchmarks.items():
        options.path = path(benchmark)

    config.question_alignment = parts.training(base, {"question_pairs": pairs}, preset=model)
    config.response_alignment = parts.training("question_alignment", {"responses": responses})
    config.response_alignment_only = parts.training(base, {"responses": responses}, preset=model)
    systems = {
        "base": parts.system(base, preset=model),
        "ralign": parts.system("response_alignment_only"),
        "qalign": parts.system("response_alignment"),
    }
    config.evaluation = parts.evaluation(systems, benchmarks, baseline="ralign")
    first = next(iter(benchmarks))
    models = {name: system.model for name, system in systems.items()}
    models |= {"base": base, "aligned": "question_alignment"}
    config.representations = parts.representations(
        models, first, parts.benchmark(path(first), limit=250), preset=model
    )
    if where:
        config.evaluation.mesh = config.representations.mesh = decoding
    return config, words


def add(config: ConfigDict, name: str, training: ConfigDict, system: str = "") -> None:
    """Adds a training stage before the evaluation, and the system that it leaves, if any."""
    config[name] = training
    at = config.stages.index("evaluation")
    config.stages = (*config.stages[:at], name, *config.stages[at:])
    if system:
        config.evaluation.systems[system] = parts.system(name)


def add_reasoning(config: ConfigDict) -> None:
    """Adds the comparison of solutions with the English ones."""
    config.reasoning = parts.reasoning("evaluation")
    config.stages = (*config.stages, "reasoning")
