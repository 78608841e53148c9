"""What the demo's arguments add to it: stages to compare with, and their systems."""

import functools

from ml_collections import ConfigDict

from qalign_jax.configs import demo_stages, two_stages
from qalign_jax.configs.data_scale import SHARES
from qalign_jax.recipe import parts


def control(config: ConfigDict) -> None:
    """As many steps as stage I, on text without pairs: `qalign` less this is the pairs' effect."""
    stage = config.question_alignment
    unpaired = demo_stages.problems(config, "control", 10_000)
    _add(config, "control", "pretraining", {"unpaired": unpaired, "replay": stage.data.replay})
    _add_tuned(config, "control_response_alignment", "control")
    config.evaluation.systems.control = parts.system("control_response_alignment")


def baselines(config: ConfigDict) -> None:
    """Translate-training, En-X pairs mixed into stage II, further tuning in all languages."""
    problems = functools.partial(demo_stages.problems, config)
    native = {"native": problems("native_responses", 4_000)}
    mixed = {"translations": problems("reversed_pairs", 4_000)}
    _add_tuned(config, "translate_training", "pretraining", native)
    answers = dict(config.response_alignment.data)
    _add_tuned(config, "response_alignment_en_x", "question_alignment", answers | mixed)
    _add_tuned(config, "multilingual_tuning", "response_alignment", native)
    for name in ("translate_training", "multilingual_tuning"):
        config.evaluation.systems[name] = parts.system(name)
    config.evaluation.systems.qalign_en_x = parts.system("response_alignment_en_x")


def data_scale(config: ConfigDict) -> None:
    """Stage I on slices of the pairs, repeated: as many steps, as many of them on pairs."""
    for share in SHARES:
        data = dict(config.question_alignment.data)
        data["pairs"] = demo_stages.problems(
            config, "question_pairs", 10_000, slice=f"[:{share}%]", weight=100 / share
        )
        _add(config, f"question_alignment_{share}", "pretraining", data)
        _add_tuned(config, f"response_alignment_{share}", f"question_alignment_{share}")
        config.evaluation.systems[f"qalign_{share}"] = parts.system(f"response_alignment_{share}")
    seen = {"ralign": 0, "qalign": 10_000} | {f"qalign_{s}": 100 * s for s in SHARES}
    config.data_scale = parts.data_scale("evaluation", seen)
    config.stages = (*config.stages, "data_scale")


def larger(config: ConfigDict) -> None:
    """A large model of ten times the expert's parameters, alone and steered by the same expert."""
    documents = demo_stages.problems(config, "pretraining", 48_000)
    stage = demo_stages.training(
        config, "random", {"documents": documents}, 3600, 1e-3, preset="demo_larger"
    )
    two_stages.add(config, "larger_pretraining", stage)
    systems, steered = config.evaluation.systems, config.evaluation.systems.large_proxy
    systems.larger = parts.system("larger_pretraining")
    systems.larger_proxy = parts.system(
        "larger_pretraining", expert=steered.expert, antiexpert=steered.antiexpert, trace=True
    )


def adapter(config: ConfigDict) -> None:
    """Both stages by adapters (LoRA) on `base`; `adapter_int8` trains them on int8 weights.

    Stage II trains the adapter of stage I further, which at its rate was no worse than a new
    adapter beside merged weights (adapter.merge): 54.4 for 51.0, at rank 32 54.0 for 52.8, of seed
    0's development part.
    """
    questions, answers = config.question_alignment.data, config.response_alignment.data
    for kind, weights_dtype in (("adapter", ""), ("adapter_int8", "int8")):
        train = functools.partial(_add, config, adapter={"rank": 8}, weights_dtype=weights_dtype)
        aligned, tuned = f"{kind}_question_alignment", f"{kind}_response_alignment"
        train(aligned, "pretraining", dict(questions), lr=5e-3)
        train(tuned, aligned, dict(answers), steps=500, lr=1e-3)
        config.evaluation.systems[f"{kind}_qalign"] = parts.system(tuned)
        if not weights_dtype:
            train(f"{tuned}_only", "pretraining", dict(answers), steps=500, lr=1e-3)
            config.evaluation.systems[f"{kind}_ralign"] = parts.system(f"{tuned}_only")


COMPARISONS = {
    "control": control,
    "baselines": baselines,
    "data_scale": data_scale,
    "larger": larger,
    "adapter": adapter,
}


def _add(
    config: ConfigDict, name: str, init: str, data: dict, steps=2600, lr=2e-3, **changes
) -> None:
    """A stage like stage I, before the evaluation."""
    two_stages.add(config, name, demo_stages.training(config, init, data, steps, lr, **changes))


def _add_tuned(config: ConfigDict, name: str, init: str, data: dict | None = None) -> None:
    """A stage like stage II."""
    _add(config, name, init, data or dict(config.response_alignment.data), steps=500, lr=1e-3)
