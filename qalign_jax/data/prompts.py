"""The prompt, the same bytes in training and evaluation, and the languages' English names."""

import string
from collections.abc import Sequence

LANGUAGES = {
    "ar": "Arabic",
    "bg": "Bulgarian",
    "bn": "Bengali",
    "de": "German",
    "el": "Greek",
    "en": "English",
    "es": "Spanish",
    "et": "Estonian",
    "fr": "French",
    "hi": "Hindi",
    "ht": "Haitian Creole",
    "id": "Indonesian",
    "it": "Italian",
    "ja": "Japanese",
    "nl": "Dutch",
    "pl": "Polish",
    "pt": "Portuguese",
    "qu": "Quechua",
    "ru": "Russian",
    "sw": "Swahili",
    "ta": "Tamil",
    "te": "Telugu",
    "th": "Thai",
    "tr": "Turkish",
    "ur": "Urdu",
    "vi": "Vietnamese",
    "zh": "Chinese",
}

TEMPLATES = {
    # arXiv 2405.01345; no trailing space or newline: the response follows directly.
    "paper": (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Response:"
    ),
    # OpenMathInstruct-1's tuned models (NVIDIA/NeMo-Skills of 2024-02, `code_sfted`).
    "openmath": (
        "System:\nYou're an expert Python programmer and mathematician. Help the user to solve "
        "this problem using code when necessary. Make sure to put the answer (and only answer) "
        "inside \\boxed{}.\n\nUser:\n{instruction}\n\nAssistant:\n"
    ),
    # For models whose rows are shorter than the paper's preamble.
    "short": "Q: {instruction}\nA:",
}

LETTERS = string.ascii_uppercase  # of the choices of a question
_SLOT = "{instruction}"


def template_text(template: str) -> str:
    """The text of a template given by its name in TEMPLATES, or given as the text itself.

    Raises:
      ValueError: neither a name nor a text with exactly one `{instruction}`.
    """
    text = TEMPLATES.get(template, template)
    if text.count(_SLOT) != 1:
        raise ValueError(
            f"template {template!r} is neither one of {', '.join(TEMPLATES)} nor a text that "
            f"holds {_SLOT} once; give one of the two"
        )
    return text


def render(template: str, instruction: str) -> str:
    """The prompt for one instruction; braces in the instruction stay as they are."""
    return template_text(template).replace(_SLOT, instruction)


def translation_instruction(source: str, target: str, text: str) -> str:
    """Stage I's instruction, in the paper's words: `translation_instruction("de", "en", text)`."""
    return (
        f"Translate the following sentences from {language_name(source)} "
        f"to {language_name(target)}. {text}"
    )


def multiple_choice(question: str, choices: Sequence[str]) -> tuple[str, list[str]]:
    """A question with lettered choices as one text, and the letters: the answer is one of them.

    The form of the paper's group for X-CSQA: options on a line of their own, tabs between them.
    """
    letters = list(LETTERS[: len(choices)])
    options = "\t".join(f"{one}. {text}" for one, text in zip(letters, choices, strict=True))
    return f"{question}\nOptions:{options}\nAnswer:", letters


def premise_and_hypothesis(premise: str, hypothesis: str) -> str:
    """A pair of natural language inference as one text, in the form of the paper's group."""
    return f"Premise: {premise}\nHypothesis: {hypothesis}\nLabel:"


def language_name(code: str) -> str:
    """The English name of an ISO 639-1 code; raises ValueError for one that is not known."""
    if not isinstance(code, str) or code not in LANGUAGES:
        raise ValueError(
            f"unknown language {code!r}; the known ISO 639-1 codes are {' '.join(LANGUAGES)}"
        )
    return LANGUAGES[code]
