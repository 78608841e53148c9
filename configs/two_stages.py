"""The paper's two stages and its baseline, which the scenarios share."""

import functools

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

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
    config.adapter = ConfigDict({"rank": placeholder(int), "alpha": 16.0, "dropout": 0.0})
    config.weights_dtype = ""  # of what adapters leave frozen, and of decoding
    config.micro_batches = 1
    config.lr, decoding, adapted = 2e-5, "", None  # the rate is the paper's (section 4.1)
    if where:
        found = slices.mesh_for(slices.MESHES | slices.ADAPTED, model, where)
        config.mesh, decoding, *_ = found
        adapted = found if isinstance(found, slices.Adapted) else None
    if adapted:
        config.adapter.rank, config.lr = slices.RANK, slices.LEARNING_RATE
        config.weights_dtype = adapted.weights_dtype
        config.micro_batches = adapted.micro_batches
    config.base = "random"  # a Hugging Face or Orbax directory of the untuned model
    names = ("question_pairs", "responses", *benchmarks)
    config.paths = ConfigDict(dict.fromkeys(names, ""))
    path, base = config.paths.get_ref, config.get_ref("base")
    config.responses = responses.name  # the data set that reads paths.responses
    responses.name, responses.path = config.get_ref("responses"), path("responses")
    pairs.path = path("question_pairs")
    for benchmark, options in benchmarks.items():
        options.path = path(benchmark)

    training = functools.partial(train, config)
    config.question_alignment = training(base, {"question_pairs": pairs}, preset=model)
    config.response_alignment = training("question_alignment", {"responses": responses})
    config.response_alignment_only = training(base, {"responses": responses}, preset=model)
    systems = {
        "base": parts.system(base, preset=model),
        "ralign": parts.system("response_alignment_only"),
        "qalign": parts.system("response_alignment"),
    }
    config.evaluation = parts.evaluation(
        systems, benchmarks, baseline="ralign", weights_dtype=config.get_oneway_ref("weights_dtype")
    )
    first = next(iter(benchmarks))
    models = {name: system.model for name, system in systems.items()}
    models |= {"base": base, "aligned": "question_alignment"}
    config.representations = parts.representations(
        models, first, parts.benchmark(path(first), limit=250), preset=model
    )
    if where:
        config.evaluation.mesh = config.representations.mesh = decoding
    if adapted:
        config.evaluation.slots = adapted.slots
        config.evaluation.cache_dtype = adapted.weights_dtype
    return config, words


def train(config: ConfigDict, init, data: dict[str, ConfigDict], **changes) -> ConfigDict:
    """A training stage with what all of a recipe share: adapters, learning rate, micro-batches.

    `--config.adapter.rank=64 --config.lr=2e-4` trains adapters in every stage, beside weights that
    `--config.weights_dtype=int8` makes narrow.
    """
    shared = {key: config.get_oneway_ref(key) for key in ("lr", "micro_batches", "weights_dtype")}
    adapter = {key: config.adapter.get_oneway_ref(key) for key in config.adapter}
    return parts.training(init, data, adapter=adapter, **(shared | changes))


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
