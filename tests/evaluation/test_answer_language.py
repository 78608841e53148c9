"""The language of an answer, its mathematics removed first."""

import json
import subprocess
import sys

import pytest

from qalign_jax.data import prompts
from qalign_jax.evaluation.answer_language import known_languages, language_of, strip_mathematics


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("5 + 6 = 11.", ""),
        ("3x + y = 7, x = 2", ""),
        ("#### 1,234.50", ""),
        ("She sells 16 - 3 = <<16-3=13>>13 eggs a day.\n#### 13", "She sells eggs a day."),
        ("He pays $5 and sells it for $7.", "He pays and sells it for"),
        (r"So $x^2 = \frac{1}{2}$ holds", "So holds"),
        (r"So \(a + bc\) is \[\text{price} = 3\] or $$ab = 2$$ then \boxed{18}", "So is or then"),
        (r"\begin{align*} speed &= 5 \end{align*} is it \[ cut off", "is it"),
        ("```python\nprint(total)\n```\nDone, by `total` eggs.", "Done, by eggs."),
        ("<llm-code>\nprint(1)\n</llm-code>\n<llm-code-output>\none\n</llm-code-output>\nSo", "So"),
        ("Run\n```\nprint(total)", "Run"),
        ("রজারের ৫টি বল", "রজারের টি বল"),
        ("มีลูกเทนนิส ๕ ลูก ½ ² ①", "มีลูกเทนนิส ลูก"),
        ("total=5+6", "total"),
        ("il y a 5 € à 3 %", "il y a à"),
        ("三个球", "三个球"),
    ],
)
def test_mathematics_is_removed_and_words_stay(text, words):
    assert strip_mathematics(text) == words


def test_the_languages_of_prompts_are_known():
    assert known_languages() == prompts.LANGUAGES.keys()


def test_a_text_without_words_or_with_too_few_has_no_language():
    for text in ("", "5 + 6 = 11", "\n", "km", "#### 18", "Answer: 18", "🎾🎾"):
        assert language_of(text) == ""


SOLUTIONS = {
    "et": "Tomil on 5 õuna ja ta ostab juurde veel 3 õuna. 5 + 3 = 8. Vastus on 8.",
    "ht": "Tom gen 5 pòm epi li achte 3 lòt pòm ankò nan mache a. 5 + 3 = 8. Repons lan se 8.",
    "id": "Tom memiliki 5 apel dan dia membeli 3 apel lagi. 5 + 3 = 8. Jadi jawabannya adalah 8.",
    "qu": "Tomqa pichqa manzanayuqmi, kimsa manzanatawan rantirqa. 5 + 3 = 8. Kutichiyqa 8.",
    "ta": "டாமிடம் 5 ஆப்பிள்கள் உள்ளன, அவர் மேலும் 3 வாங்குகிறார். 5 + 3 = 8. பதில் 8.",
    "ar": "بدأ روجر بخمس كرات. 5 + 6 = 11. الجواب هو 11.",
    "bg": "Роджър има пет топки и купува още шест. Отговорът е 11.",
    "bn": "রজারের প্রথমে ৫টি বল ছিল। ৫ + ৬ = ১১। উত্তর হল ১১।",
    "de": "Sie verkauft 16 - 3 - 4 = 9 Eier am Tag. Die Antwort ist 9.",
    "el": "Ο Ρότζερ ξεκίνησε με 5 μπάλες. Η απάντηση είναι 11.",
    "en": "She sells 16 - 3 - 4 = 9 eggs a day. The answer is 9.",
    "es": "Ella vende 16 - 3 - 4 = 9 huevos al día. La respuesta es 9.",
    "fr": "Elle vend 16 - 3 - 4 = 9 œufs par jour. La réponse est 9.",
    "hi": "रोजर के पास पहले 5 गेंदें थीं। उत्तर 11 है।",
    "it": "Lei vende 16 - 3 - 4 = 9 uova al giorno. La risposta è 9.",
    "ja": "彼女は1日に16 - 3 - 4 = 9個の卵を売ります。答えは9です。",
    "nl": "Ze verkoopt 16 - 3 - 4 = 9 eieren per dag. Het antwoord is 9.",
    "pl": "Ona sprzedaje 16 - 3 - 4 = 9 jajek dziennie. Odpowiedź to 9.",
    "pt": "Ela vende 16 - 3 - 4 = 9 ovos por dia. A resposta é 9.",
    "ru": "Она продаёт 16 - 3 - 4 = 9 яиц в день. Ответ — 9.",
    "sw": "Anauza mayai 16 - 3 - 4 = 9 kwa siku. Jibu ni 9.",
    "te": "ఆమె రోజుకు 16 - 3 - 4 = 9 గుడ్లు అమ్ముతుంది. సమాధానం 9.",
    "th": "เธอขายไข่ 16 - 3 - 4 = 9 ฟองต่อวัน คำตอบคือ 9",
    "tr": "Günde 16 - 3 - 4 = 9 yumurta satıyor. Cevap 9.",
    "ur": "وہ روزانہ 16 - 3 - 4 = 9 انڈے بیچتی ہے۔ جواب 9 ہے۔",
    "vi": "Cô ấy bán 16 - 3 - 4 = 9 quả trứng mỗi ngày. Đáp án là 9.",
    "zh": "她每天卖 16 - 3 - 4 = 9 个鸡蛋。答案是 9。",
}


@pytest.mark.parametrize("language", prompts.LANGUAGES)
def test_a_short_solution_has_its_language(language):
    assert language_of(SOLUTIONS[language]) == language


def test_real_solutions_have_their_languages(real_data):
    exemplars = json.loads((real_data / "mgsm" / "exemplars.json").read_text(encoding="utf-8"))
    for language, rows in exemplars["MGSM_EXEMPLARS"].items():
        assert {language_of(row["a"]) for row in rows.values()} == {language}
    lines = (real_data / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    english = [language_of(json.loads(line)["answer"]) for line in lines]
    assert english.count("en") / len(english) > 0.99


def test_the_identifier_is_imported_on_first_use():
    program = (
        "import sys; from qalign_jax.evaluation import consistency, answer_language as a;"
        "print('py3langid' in sys.modules); a.known_languages(); print('py3langid' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout.split() == ["False", "True"], run.stderr
