"""General-domain translations En-X, which mixed into stage II keep answers in the question's
language (arXiv 2405.01345), in the layout of NTREX-128."""

from qalign_jax import files
from qalign_jax.data import inputs
from qalign_jax.data.datasets import base, question_pairs

_DATA = (
    "https://raw.githubusercontent.com/MicrosoftTranslator/NTREX/"
    "8561f6a622db9edad1217683e5c83daefd8bb2bf/NTREX-128"
)
# ISO 639-1 -> NTREX's own codes
_CODES = {
    "ar": "arb", "bg": "bul", "bn": "ben", "de": "deu", "el": "ell", "es": "spa", "et": "est",
    "fr": "fra", "hi": "hin", "id": "ind", "it": "ita", "ja": "jpn", "nl": "nld", "pl": "pol",
    "pt": "por", "ru": "rus", "sw": "swa", "ta": "tam", "te": "tel", "th": "tha", "tr": "tur",
    "ur": "urd", "vi": "vie", "zh": "zho-CN",
}  # fmt: skip
_ENGLISH = "newstest2019-src.eng.txt"
_FILES = {code: f"newstest2019-ref.{name}.txt" for code, name in _CODES.items()}
PAPER_LANGUAGES = ("bn", "th", "sw", "ja", "zh", "de", "fr", "ru", "es")


class Translations(base.ExamplesBuilder):
    """Translate an English sentence into X: newstest2019-src.eng.txt, newstest2019-ref.deu.txt.

    Without `languages` those of mGSM that have a file, interleaved by line. Translations in
    de-en/train.de and de-en/train.en are read by question_pairs with reverse=True.
    """

    name = "translations"
    HAS_SPLITS = False
    ABOUT = (
        "the folder NTREX-128 of github.com/MicrosoftTranslator/NTREX, with "
        f"{_ENGLISH}, {_FILES['de']} and so on"
    )
    URLS = {
        file: f"{_DATA}/{file}" for file in (_ENGLISH, *(_FILES[code] for code in PAPER_LANGUAGES))
    }

    @classmethod
    def find_files(cls, config):
        folder = cls.existing(config)
        english = inputs.existing(str(folder / _ENGLISH), "it is the English side of all languages")
        found = {"en": english}
        for code in config.languages or PAPER_LANGUAGES:
            if code not in _FILES:
                raise ValueError(f"translations has no {code!r}; it has {' '.join(_FILES)}")
            if (path := folder / _FILES[code]).exists():
                found[code] = path
            elif config.languages:
                raise ValueError(f"{path} does not exist; add it or take {code!r} out of languages")
        return found

    @classmethod
    def read(cls, config):
        for lines in inputs.read_parallel(config.paths, files.read_lines):
            english = lines.pop("en")
            for code, line in lines.items():
                if line.text.strip() and english.text.strip():
                    yield question_pairs.pair(
                        code, english.number, line.text, english.text, reverse=True
                    )


BUILDER = Translations
