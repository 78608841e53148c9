"""What a page says of a run, from its recorded config."""

from qalign_jax.configs import demo, math_cot, proxy_tuning
from qalign_jax.reporting import provenance


def test_every_system_is_followed_back_to_the_first_weights():
    config = demo.get_config().to_dict()
    assert provenance.systems(config) == {
        "base": "random → pretraining",
        "ralign": "random → pretraining → response_alignment_only",
        "qalign": "random → pretraining → question_alignment → response_alignment",
        "large": "random → large_pretraining",
        "large_proxy": "random → large_pretraining + 1 · (response_alignment − pretraining)",
        "numbers_only": "no model: guesses from a question's numbers, without its words",
    }
    assert provenance.baseline(config) == "ralign"
    assert provenance.presets(config) == ("demo_small", "demo_large")


def test_every_alpha_of_a_system_is_followed():
    config = proxy_tuning.get_config("tiny")
    config.alpha = (0.5, 1)
    assert provenance.systems(config.to_dict()) == {
        "large": "random",
        "large_proxy_alpha0.5": "random + 0.5 · (random − random)",
        "large_proxy_alpha1.0": "random + 1 · (random − random)",
    }


def test_the_facts_name_the_model_the_seed_and_what_is_not_finished():
    config = math_cot.get_config("llama2_7b").to_dict() | {"base": "/models/Llama-2-7b-hf"}
    done = {name: {"seconds": 3_600.0} for name in config["stages"][:3]}
    assert provenance.facts(config, done) == [
        ("Model", "llama2_7b, from /models/Llama-2-7b-hf"),
        ("Seed", "1234"),
        ("Stages", "6, evaluation, representations, reasoning not finished"),
        ("Time", "3 h 0 min"),
    ]
    assert provenance.facts({}, {}) == []
    assert [provenance.duration(seconds) for seconds in (9.4, 61, 90_061)] == [
        "9 s", "1 min 1 s", "25 h 1 min",
    ]  # fmt: skip


def test_notes_are_a_text_or_texts():
    assert provenance.notes({"notes": "one"}) == ["one"]
    assert provenance.notes({"notes": ["one", "two"]}) == ["one", "two"]
    assert provenance.notes({}) == []
