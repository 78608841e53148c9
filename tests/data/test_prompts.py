import pytest

from qalign_jax.data import prompts


def test_the_paper_prompt_is_the_paper_s_byte_for_byte():
    expected = (
        b"Below is an instruction that describes a task. Write a response that appropriately "
        b"completes the request.\n\n### Instruction:\nHow many?\n\n### Response:"
    )
    assert prompts.render("paper", "How many?").encode() == expected


def test_the_translation_instruction_is_the_paper_s():
    assert (
        prompts.translation_instruction("de", "en", "Wie viele?")
        == "Translate the following sentences from German to English. Wie viele?"
    )


def test_braces_in_a_question_survive():
    question = "Set {instruction} = {x: 1} and {}"
    assert prompts.render("Q: {instruction}!", question) == f"Q: {question}!"


def test_all_languages_of_the_benchmarks_have_names():
    mgsm = "bn de en es fr ja ru sw te th zh"
    xnli = "ar bg de el en es fr hi ru sw th tr ur vi zh"
    xcsqa = "en zh de es fr it ja nl pl pt ru ar vi hi sw ur"
    assert set(f"{mgsm} {xnli} {xcsqa}".split()) <= set(prompts.LANGUAGES)


@pytest.mark.parametrize("template", ["papre", "two {instruction} {instruction}", ""])
def test_a_template_without_one_slot_is_refused(template):
    with pytest.raises(ValueError, match=r"paper.*\{instruction\}"):
        prompts.render(template, "x")


def test_an_unknown_language_names_the_known_ones():
    with pytest.raises(ValueError, match=r"'xx'.*bn"):
        prompts.translation_instruction("xx", "en", "?")
