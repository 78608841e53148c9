"""A small run with answers of every kind, and the least page that shows its explorer."""

import re

from tests.files import write_jsonl

PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>t</title>
<link rel="icon" href="data:,"><style>:root {{ color-scheme: light dark;
--paper: light-dark(#fdfdfc, #131619); --panel: light-dark(#f4f5f5, #1b1f23);
--ink: light-dark(#1a1f25, #e4e7ea); --muted: light-dark(#5b646e, #9aa3ad);
--line: light-dark(#dfe2e5, #2f353b); --accent: light-dark(#0b62a8, #6cb6f5);
--good: light-dark(#14733f, #62c98f); --bad: light-dark(#b0322a, #f28b80); }}
:root[data-theme="dark"] {{ color-scheme: dark; }}
body {{ margin: 0 auto; max-width: 72rem; padding: 1rem; background: var(--paper);
font: 1rem/1.6 system-ui, sans-serif; }}</style></head><body><h1 id="accuracy">Accuracy</h1>
{section}</body></html>"""

QUESTIONS = {
    "ar": "لدى توم {a} تفاحات واشترى {b} أخرى. كم تفاحة لديه الآن؟",
    "bn": "টমের কাছে {a}টি আপেল আছে এবং সে আরও {b}টি কেনে। তার কাছে কয়টি আপেল আছে?",
    "en": "Tom has {a} apples and buys {b} more. How many apples does he have?",
    "th": "ทอมมีแอปเปิ้ล {a} ลูกและซื้อเพิ่มอีก {b} ลูก เขามีแอปเปิ้ลกี่ลูก",
    "ur": "ٹام کے پاس {a} سیب ہیں اور وہ {b} مزید خریدتا ہے۔ اس کے پاس کتنے سیب ہیں؟",
    "zh": "汤姆有 {a} 个苹果，又买了 {b} 个。他有多少个苹果？",
}
COUNT = 40
# Whether a system is right about a question, by its number.
RIGHT = {
    "base": lambda number: number % 4 == 0,
    "ralign": lambda number: number % 3 == 0,
    "qalign": lambda number: number % 5 != 0,
    "large_proxy": lambda number: number % 2 == 0,
}
HOSTILE = "</script><script>hacked = 1</script><img src=x onerror='hacked = 1'> & &amp; <b>bold</b>"
HOSTILE_SYSTEM = "<img src=x onerror=hacked=1>"
CODE = "He has 3.\n<llm-code>\nprint(3 + 4)\n</llm-code>"
REPLY = "\n<llm-code-output>\n7\n</llm-code-output>\n"
REST = "The answer is \\boxed{7}."


def header(**fields):
    return {"header": {"template": "Q: {instruction}\nA:", "settings": {}, **fields}}


def trace(texts):
    """A trace whose tokens the proxy moves by turns, and the base's own at every third."""
    tokens = list(range(len(texts)))
    return {
        "tokens": tokens,
        "text": texts,
        "base_tokens": [-1 if token % 3 == 2 else token for token in tokens],
        "base_text": [" pears" if token % 3 == 2 else texts[token] for token in tokens],
        "base_probability": [0.4321] * len(texts),
        "probability": [0.9] * len(texts),
        "moved": [(0.0, -0.25, 0.8)[token % 3] for token in tokens],
    }


def number_line(language, system, number):
    a, b = number + 2, number + 3
    said = a + b if RIGHT[system](number) else a
    output = f"Tom has {a} + {b} = {said} apples.\nThe answer is {said}."
    if system == "base" and language == "ur":
        output = f"ٹام کے پاس {said} سیب ہیں۔"
    question = HOSTILE if number == 7 else QUESTIONS[language].format(a=a, b=b)
    line = {
        "id": f"test-{number}",
        "language": language,
        "question": question,
        "answer": str(a + b),
    }
    line |= {"output": output, "prediction": float(said), "correct": said == a + b}
    line |= {"sound_prediction": float(said), "sound_correct": said == a + b}
    if system == "large_proxy":
        line["trace"] = trace(re.findall(r"\s?\S+", output))
    return line


def write_answers(folder, *lines):
    write_jsonl(folder, [header(), *lines])


def write_run(workdir):
    """Numbers in six languages, code with hostile texts, choices, and an unfinished stage."""
    stage = workdir / "evaluation"
    for system in RIGHT:
        for language in QUESTIONS:
            lines = [number_line(language, system, number) for number in range(COUNT)]
            write_answers(stage / system / "mgsm" / f"{language}.jsonl", *lines)

    asked = {"language": "en", "question": "How many?", "answer": "7"}
    right = {"prediction": "7", "correct": True, "sound_prediction": "7", "sound_correct": True}
    wrong = {"prediction": None, "correct": False, "sound_prediction": "7", "sound_correct": True}
    ok, error = {"status": "ok", "output": "7\n"}, {"status": "error", "output": "NameError: x\n"}
    turns = ["He", " has", " 3.", "\n<llm-code>\nprint(", "3 + 4)\n</llm-", "code>\n"]
    turns += ["The answer", " is", " \\boxed{7}."]
    traced = {"output": CODE + REPLY + REST, "executions": [ok], "trace": trace(turns), **right}
    failed = {"output": CODE + REPLY + CODE, "executions": [ok, error], **wrong}
    failed["trace"] = trace(["some", " else"])
    written = {"output": CODE + REPLY + HOSTILE, "executions": [], **wrong}
    one, two = ({"id": name} | asked for name in ("a", "b"))
    write_answers(stage / "qalign" / "svamp" / "en.jsonl", one | traced, two | failed)
    write_answers(stage / HOSTILE_SYSTEM / "svamp" / "en.jsonl", one | written, two | traced)

    asked = {"id": "0", "question": "أين؟", "choices": ["in the sea", "at home"]}
    asked["answer"] = "in the sea"
    likely = {"log_likelihoods": [-1.0, -3.0], **right, "prediction": "in the sea"}
    chosen = {"output": "at home", **wrong, "prediction": "at home"}
    write_answers(stage / "qalign" / "xcsqa" / "ar.jsonl", asked | chosen)
    write_answers(stage / "qalign" / "xcsqa" / "likelihood" / "ar.jsonl", asked | likely)

    late = workdir / "late"
    lines = [number_line("en", "base", number) for number in range(3)]
    write_answers(late / "base" / "mgsm" / "en.jsonl", *lines)
    write_answers(late / "qalign" / "mgsm" / "en.jsonl", lines[1])
    with (late / "qalign" / "mgsm" / "en.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"id": "test-2", "ou')
    return ["evaluation", "late"]
