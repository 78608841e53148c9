"""How fast the explorer of single questions opens and filters, in Chromium.

    python -m tests.benchmarks.explorer_speed [--traced]

Ten languages, 1,000 questions, five systems, answers of about 500 characters, from a seed; with
--traced one system's tokens are traced. Times are the browser's own: from the start of the
navigation until the first question is shown, and from an event until the next frame is painted.
"""

import pathlib
import random
import resource
import statistics
import tempfile
import time

from absl import app, flags
from etils import epath

from qalign_jax.reporting import explorer
from tests import browser as browsers
from tests.files import write_jsonl
from tests.reporting.answers import PAGE, header, trace

TRACED = flags.DEFINE_bool("traced", False, "Trace one system's tokens.")
COUNT = flags.DEFINE_integer("questions", 1000, "Questions of a language.")
REPEATS = flags.DEFINE_integer("repeats", 9, "Measurements of each update.")

SYSTEMS = ("base", "large", "large_proxy", "qalign", "ralign")
ALPHABETS = {  # ranges of letters; answers are half in the question's language, half in English
    "bn": (0x995, 0x9B9), "de": (0x61, 0x7A), "en": (0x61, 0x7A), "es": (0x61, 0x7A),
    "fr": (0x61, 0x7A), "ja": (0x3042, 0x3093), "ru": (0x430, 0x44F), "sw": (0x61, 0x7A),
    "th": (0xE01, 0xE2E), "zh": (0x4E00, 0x5FFF),
}  # fmt: skip

# Calls back with the milliseconds from an action to the frame that shows its result.
MEASURE = """
const [code, done] = arguments;
const explorer = document.getElementById("explorer");
const before = performance.now();
new Function("explorer", code)(explorer);
const look = () => {
  if (explorer.getAttribute("aria-busy") !== "false") setTimeout(look);
  else requestAnimationFrame(() => setTimeout(() => done(performance.now() - before)));
};
setTimeout(look);
"""
# Keeps the moment at which the explorer is first ready.
WATCH = """
new MutationObserver((_, observer) => {
  if (document.getElementById("explorer")?.getAttribute("aria-busy") !== "false") return;
  observer.disconnect();
  requestAnimationFrame(() => setTimeout(() => { window.readyAt = performance.now(); }));
}).observe(document, { subtree: true, childList: true, attributes: true });
"""
CLICK = "explorer.querySelector('{}').click()"
SEARCH = """const input = explorer.querySelector('input');
input.value = '{}'; input.dispatchEvent(new Event('input'));"""
LANGUAGE = """const select = explorer.querySelector('[data-part="language"]');
select.value = '{}'; select.dispatchEvent(new Event('change'));"""
KEY = "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: 'j', bubbles: true}));"


def write_run(workdir: pathlib.Path, seed: int = 0) -> None:
    """The answer files of one stage."""
    chance = random.Random(seed)
    for language, (first, last) in ALPHABETS.items():
        words = [
            "".join(chr(chance.randint(first, last)) for _ in range(chance.randint(2, 7)))
            for _ in range(3000)
        ]
        english = [
            "".join(chr(chance.randint(0x61, 0x7A)) for _ in range(chance.randint(2, 7)))
            for _ in range(3000)
        ]
        for system in SYSTEMS:
            lines = [header()]
            for number in range(COUNT.value):
                right = chance.random() < 0.5
                spoken = chance.choice((words, english))
                texts = [f" {chance.choice(spoken)}" for _ in range(90)]
                line = {"id": f"test-{number}", "language": language, "answer": str(number)}
                line["question"] = " ".join(words[(number + place) % 3000] for place in range(40))
                line |= {"output": "".join(texts), "prediction": float(number), "correct": right}
                line |= {"sound_prediction": float(number), "sound_correct": right}
                if TRACED.value and system == "large_proxy":
                    line["trace"] = trace(texts) | {
                        name: [chance.random() for _ in texts]
                        for name in ("base_probability", "probability", "moved")
                    }
                lines.append(line)
            write_jsonl(workdir / "evaluation" / system / "mgsm" / f"{language}.jsonl", lines)


def row(name: str, values: list[float]) -> None:
    print(f"| {name} | {statistics.median(values):,.0f} | {max(values):,.0f} |", flush=True)


def main(_) -> None:
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder)
        write_run(workdir)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begin = time.perf_counter()
        section = explorer.section(epath.Path(workdir), ["evaluation"])
        path = workdir / "page.html"
        path.write_text(PAGE.format(section=section), encoding="utf-8")
        took = time.perf_counter() - begin
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
        size = path.stat().st_size / 1e6
        print(f"page: {size:.1f} MB, written in {took:.1f} s, {memory / 1024:,.0f} MB of memory\n")
        print("| | median, ms | most |\n|---|---|---|")
        browser = browsers.start(workdir / "profile")
        browser.set_script_timeout(120)
        browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH})

        def opened(address: str) -> float:
            browser.get("about:blank")
            browser.get(path.as_uri() + address)
            while not (ready := browser.execute_script("return window.readyAt")):
                time.sleep(0.01)
            return ready

        def timed(code: str) -> float:
            return browser.execute_async_script(MEASURE, code)

        def measure(name: str, *codes: str) -> None:
            """Of actions by turns."""
            rounds = range(REPEATS.value * len(codes))
            row(
                name, [browser.execute_async_script(MEASURE, codes[i % len(codes)]) for i in rounds]
            )

        row("open", [opened("") for _ in range(5)])
        row("open a link into all languages", [opened("#explorer?language=all") for _ in range(3)])
        one, another = (
            CLICK.format(f'.x-system[data-name="{system}"] [data-is="{verdict}"]')
            for system, verdict in (("qalign", "right"), ("ralign", "wrong"))
        )
        disagree = CLICK.format('[data-part="disagree"]')
        for languages in ("de", "all"):
            opened(f"#explorer?language={languages}")
            place = "one language" if languages == "de" else "all languages"
            measure(f"filter by systems, {place}", one, another)
            measure(f"systems disagree, {place}", disagree)
            for text in ("t", "rare words", "test-7"):
                measure(f"search for “{text}”, {place}", SEARCH.format(text), SEARCH.format(""))
            measure(f"next question, {place}", KEY)
        opened("")
        changes = [LANGUAGE.format(code) for code in ALPHABETS]
        row(
            "open another language",
            [browser.execute_async_script(MEASURE, code) for code in changes],
        )
        browser.quit()


if __name__ == "__main__":
    app.run(main)
