"""The explorer of single questions in a browser."""

import json
import re
import time
import urllib.parse

import pytest
from etils import epath
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from qalign_jax.reporting import explorer
from tests.reporting.answers import (
    COUNT,
    HOSTILE,
    HOSTILE_SYSTEM,
    PAGE,
    QUESTIONS,
    REST,
    RIGHT,
    write_run,
)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The path of a page with the section of the run that `write_run` writes."""
    workdir = tmp_path_factory.mktemp("run")
    section = explorer.section(epath.Path(workdir), write_run(workdir))
    path = workdir / "page.html"
    path.write_text(PAGE.format(section=section), encoding="utf-8")
    return path


class Explorer:
    """The section in a browser, through what a reader sees and does."""

    def __init__(self, browser, path):
        self.browser, self.url = browser, path.as_uri()

    def open(self, address=""):
        self.browser.get("about:blank")
        self.browser.get(self.url + address)
        return self.wait()

    def wait(self):
        """Until nothing is unpacked or filtered any more, and the address is written."""
        end = time.monotonic() + 20
        script = "return document.getElementById('explorer').getAttribute('aria-busy')"
        while self.browser.execute_script(script) != "false":
            assert time.monotonic() < end, self.browser.get_log("browser")
            time.sleep(0.01)
        return self

    def all(self, selector):
        return self.browser.find_elements(By.CSS_SELECTOR, f"#explorer {selector}")

    def one(self, selector):
        [found] = self.all(selector)
        return found

    def text(self, selector):
        return self.one(selector).text

    def texts(self, selector):
        return self.browser.execute_script(
            "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)",
            f"#explorer {selector}",
        )

    def click(self, selector):
        self.one(selector).click()
        return self.wait()

    def choose(self, part, value):
        return self.click(f'[data-part="{part}"] option[value="{value}"]')

    def filter(self, system, verdict):
        return self.click(f'.x-system[data-name="{system}"] [data-is="{verdict}"]')

    def keys(self, *keys):
        self.browser.switch_to.active_element.send_keys(*keys)
        return self.wait()

    def count(self):
        return int(self.text('[data-part="count"]').split()[0])

    def shown(self):
        """Id and language of the shown question."""
        return tuple(self.texts(".x-head h3 > *")[:2])

    def address(self, **expected):
        """The address as a dictionary, once it holds what is expected."""

        def found():
            query = urllib.parse.urlsplit(self.browser.current_url).fragment.partition("?")[2]
            return dict(urllib.parse.parse_qsl(query))

        if expected:
            self.until(lambda: found().items() >= expected.items())
        return found()

    def until(self, is_so):
        """Waits for what the browser does in its own time: scrolling, going to an address."""
        end = time.monotonic() + 10
        while not is_so():
            assert time.monotonic() < end
            time.sleep(0.02)

    def style(self, element, name):
        return self.browser.execute_script(
            "return getComputedStyle(arguments[0]).getPropertyValue(arguments[1])", element, name
        )


@pytest.fixture
def section(browser, page):
    """The section in the browser; afterwards neither an error nor a request was logged."""
    browser.get_log("browser"), browser.get_log("performance")
    yield Explorer(browser, page)
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = {
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    }
    assert {url for url in urls if url != "data:,"} <= {page.as_uri(), "about:blank"}, urls
    assert browser.execute_script("return window.hacked") is None


def test_the_first_question_is_shown_with_every_systems_answer(section):
    section.open()
    assert section.shown() == ("test-0", "Arabic") and section.count() == COUNT
    assert section.texts(".x-card h4") == list(RIGHT)
    assert section.texts(".x-badge") == ["✓ right", "✓ right", "✗ wrong", "✓ right"]
    assert section.text(".x-question") == QUESTIONS["ar"].format(a=2, b=3)
    assert section.texts(".x-facts strong") == ["5"]
    prose = section.all(".x-card:first-of-type .x-prose")[0]
    assert prose.text == "Tom has 2 + 3 = 5 apples.\nThe answer is 5."
    assert section.browser.execute_script("return location.hash") == ""


def test_two_clicks_show_what_one_system_has_wrong_and_another_right(section):
    section.open().filter("ralign", "wrong").filter("qalign", "right")
    expected = [n for n in range(COUNT) if RIGHT["qalign"](n) and not RIGHT["ralign"](n)]
    assert section.count() == len(expected)
    assert section.texts(".x-id")[:3] == [f"test-{number}" for number in expected[:3]]
    assert section.shown() == ("test-1", "Arabic")
    section.filter("ralign", "wrong").filter("ralign", "right").filter("qalign", "right")
    assert section.count() == sum(map(RIGHT["ralign"], range(COUNT)))
    section.click('[data-part="reset"]')
    assert section.count() == COUNT


def test_systems_that_disagree_are_one_click(section):
    section.open().click('[data-part="disagree"]')
    expected = [n for n in range(COUNT) if len({is_right(n) for is_right in RIGHT.values()}) > 1]
    assert section.count() == len(expected)


def test_search_finds_questions_and_answers_in_any_case_and_in_all_languages(section):
    section.open()
    search = section.one("input")
    search.send_keys("= 9 APPLES")
    assert section.wait().count() == 2  # right once, wrong once
    search.clear()
    search.send_keys("汤姆有 12 个")
    assert section.wait().count() == 0
    assert section.text(".x-detail") == "No question passes the filters."
    section.choose("language", "all")
    assert section.count() == 1 and section.shown() == ("test-10", "Chinese")
    assert section.text(".x-count") == f"1 of {len(QUESTIONS) * COUNT} questions"
    assert section.texts(".x-language") == ["zh"]


def test_a_link_opens_the_same_question_and_filters(section):
    section.open().choose("language", "zh").filter("qalign", "right")
    section.one("input").send_keys("Tom has")
    section.wait().all(".x-row")[2].click()
    shown = section.wait().shown()
    assert shown == ("test-3", "Chinese")
    expected = {"benchmark": "mgsm", "stage": "evaluation", "language": "zh"}
    expected |= {"question": "zh:test-3", "right": "qalign", "search": "Tom has"}
    assert section.address(**expected) == expected
    link = section.browser.execute_script("return location.hash")
    section.open(link)
    assert section.shown() == shown and section.count() == 32
    assert section.one("input").get_attribute("value") == "Tom has"
    assert section.one('[aria-pressed="true"]').text == "✓ right"
    assert section.one('[aria-selected="true"] .x-id').text == "test-3"


def test_the_link_of_a_question_can_be_copied(section):
    button = section.open().all(".x-actions button")[2]
    button.click()
    assert section.address() == {
        "stage": "evaluation", "benchmark": "mgsm", "language": "ar", "question": "ar:test-0",
    }  # fmt: skip
    section.until(lambda: button.text in ("Copied", "It is in the address bar"))


def test_back_and_forward_go_through_what_was_clicked(section):
    section.open().choose("language", "en").filter("qalign", "wrong")
    assert (section.count(), section.shown()) == (8, ("test-0", "English"))
    section.all(".x-row")[1].click()
    assert section.wait().shown() == ("test-5", "English")
    for step, *expected in (
        ("back", 8, "test-0", "English"), ("back", 40, "test-0", "English"),
        ("back", 40, "test-0", "Arabic"), ("forward", 40, "test-0", "English"),
        ("forward", 8, "test-0", "English"), ("forward", 8, "test-5", "English"),
    ):  # fmt: skip
        getattr(section.browser, step)()
        section.until(lambda there=expected: [section.wait().count(), *section.shown()] == there)


@pytest.mark.parametrize(
    "address",
    [
        "#accuracy",
        "#explorer?benchmark=nothing&language=xx&question=xx:1&right=nobody",
        "#explorer?question=%E0%A4%A&language=ar",
        "#explorer?question=ar:no-such-id&&&=",
    ],
)
def test_a_bad_address_falls_back_to_the_first_question(section, address):
    section.open(address)
    assert section.shown() == ("test-0", "Arabic") and section.count() == COUNT


def test_the_pages_other_anchors_leave_the_question_alone(section):
    section.open("#explorer?question=en:test-9")
    section.browser.execute_script("location.hash = 'accuracy'")
    assert section.wait().shown() == ("test-9", "English")


def test_a_question_is_followed_into_other_languages_outside_the_filters_too(section):
    section.open("#explorer?language=en&question=en:test-4&right=qalign")
    assert section.texts(".x-others a") == ["ar", "bn", "th", "ur", "zh"]
    section.click('.x-others a[title="Urdu"]')
    section.until(lambda: section.shown() == ("test-4", "Urdu"))
    assert section.address()["language"] == "ur"
    section.open("#explorer?language=en&question=en:test-5&right=qalign")
    assert section.texts(".x-head small") == ["English", "outside the filters"]


def test_keys_move_through_the_list_and_stay_out_of_inputs(section):
    section.open().keys("jjk")
    assert section.shown()[0] == "test-1"
    assert section.address(question="ar:test-1")["question"] == "ar:test-1"
    section.keys("/").keys("jk")  # typed into the search
    assert section.one("input").get_attribute("value") == "jk" and section.count() == 0
    section.keys(Keys.ESCAPE)
    assert section.one("input").get_attribute("value") == "jk"
    assert section.browser.switch_to.active_element.get_attribute("role") == "listbox"
    section.keys("/", Keys.BACKSPACE, Keys.BACKSPACE, Keys.ESCAPE)
    section.keys(Keys.HOME, Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_UP)
    assert section.shown()[0] == "test-1"
    section.keys(Keys.END)
    assert section.shown()[0] == f"test-{COUNT - 1}"
    chosen = section.one('[aria-selected="true"]')
    active = section.one('[role="listbox"]').get_attribute("aria-activedescendant")
    assert chosen.get_attribute("id") == active and chosen.is_displayed()
    section.keys(Keys.CONTROL, "k", Keys.NULL)
    assert section.shown()[0] == f"test-{COUNT - 1}"


def test_tab_reaches_every_control_and_focus_is_visible(section):
    section.open()
    seen = []
    while True:
        section.keys(Keys.TAB)
        element = section.browser.switch_to.active_element
        if element.tag_name == "body":  # the page's end
            break
        seen.append(element.get_attribute("data-part") or element.text)
        assert section.style(element, "outline-style") != "none", seen
    for control in ("stage", "benchmark", "language", "search", "disagree", "list", "bn"):
        assert seen.count(control) == 1, seen
    assert seen.count("✗ wrong") == len(RIGHT) and {"Copy link", "Prompt"} <= set(seen)
    assert seen[-1] == "Tom"  # one stop for all tokens of an answer


def test_only_the_rows_in_sight_are_drawn(section):
    section.open("#explorer?language=all&question=zh:test-20")
    assert len(section.all(".x-row")) < 30 and section.one('[aria-selected="true"]').is_displayed()
    section.browser.execute_script("document.querySelector('#explorer .x-list').scrollTop = 0")
    section.until(lambda: section.texts(".x-row:first-child .x-id") == ["test-0"])


def test_texts_have_their_language_and_direction(section):
    section.open("#explorer?language=ur&question=ur:test-1")
    question = section.one(".x-question")
    assert question.get_attribute("lang") == "ur" and section.style(question, "direction") == "rtl"
    base, other = section.all(".x-prose")[0], section.all(".x-prose")[2]
    assert base.get_attribute("lang") == "ur" and section.style(base, "direction") == "rtl"
    assert other.get_attribute("lang") == "" and section.style(other, "direction") == "ltr"
    snippet = section.all(".x-snippet")[0]
    assert snippet.get_attribute("lang") == "ur" and section.style(snippet, "direction") == "rtl"
    section.open("#explorer?language=th&question=th:test-1")
    assert section.one(".x-question").get_attribute("lang") == "th"


def test_hostile_texts_are_shown_as_text(section):
    section.open("#explorer?language=en&question=en:test-7")
    assert section.text(".x-question") == HOSTILE
    section.open("#explorer?benchmark=svamp&question=en:a")
    assert section.texts(".x-card h4") == ["qalign", HOSTILE_SYSTEM]
    assert HOSTILE in section.texts(".x-prose")
    assert section.all("img") == [] and section.all(".x-detail b") == []


def test_programs_stand_beside_their_output_and_status(section):
    section.open("#explorer?benchmark=svamp&question=en:a")
    ran, written = section.all(".x-card")
    assert ran.find_element(By.CSS_SELECTOR, ".x-code pre").text == "print(3 + 4)"
    captions = [caption.text for caption in ran.find_elements(By.CSS_SELECTOR, "figcaption")]
    assert captions == ["Program ok", "Output"]
    assert ran.find_element(By.CSS_SELECTOR, ".x-output pre").text == "7"
    assert "llm-code" not in ran.text and REST in ran.text
    captions = [caption.text for caption in written.find_elements(By.CSS_SELECTOR, "figcaption")]
    assert captions == ["Program not run", "Output as written"]
    assert "Predicted nothing · by the sound reader 7, right" in written.text
    failed = section.open("#explorer?benchmark=svamp&question=en:b").all(".x-card")[0]
    captions = [caption.text for caption in failed.find_elements(By.CSS_SELECTOR, "figcaption")]
    assert captions == ["Program ok", "Output", "Program error", "Output"]
    assert "NameError: x" in failed.text


def test_choices_have_their_likelihoods(section):
    section.open("#explorer?benchmark=xcsqa")
    assert section.texts(".x-likelihoods tbody th") == ["in the sea ✓", "at home"]
    assert section.texts(".x-likelihoods tbody td") == ["88.1 %", "−1.00", "11.9 %", "−3.00"]
    assert section.text(".x-most th").startswith("in the sea")
    assert "Predicted at home" in section.text(".x-card")


def test_a_system_that_has_not_answered_is_shown_as_such(section):
    section.open().choose("stage", "late").choose("benchmark", "mgsm")
    assert section.address(stage="late")["stage"] == "late"
    assert section.texts(".x-badge") == ["✓ right", "not answered yet"]
    section.filter("qalign", "wrong")
    assert section.count() == 1 and section.shown()[0] == "test-1"


def test_tokens_are_shaded_by_how_far_the_proxy_moved_them(section):
    section.open("#explorer?language=en&question=en:test-1")
    tokens = section.all(".x-token")
    assert "".join(token.get_attribute("textContent") for token in tokens) == (
        "Tom has 3 + 4 = 3 apples.\nThe answer is 3."
    )
    still, down, up = (section.style(token, "background-color") for token in tokens[:3])
    alphas = [float(re.search(r"/ ([\d.]+)\)", colour)[1]) for colour in (still, down, up)]
    assert alphas == pytest.approx([0, 0.155, 0.496], abs=0.01)
    assert down.split("/")[0] != up.split("/")[0]
    assert "underline" in section.style(tokens[2], "text-decoration-line")
    assert section.style(tokens[1], "text-decoration-line") == "none"
    assert "another token (4 of 12)" in section.text(".x-legend")


def test_a_tokens_tip_says_what_the_base_alone_would_have_said(section):
    section.open("#explorer?language=en&question=en:test-1")
    tip = section.one('[role="tooltip"]')
    assert not tip.is_displayed()
    section.all(".x-token")[2].click()  # a tap focuses
    assert tip.text.split("\n") == [
        "token", "·3", "90.0 %", "base alone", "·pears", "43.2 %", "moved", "+80.0 points",
    ]  # fmt: skip
    section.keys(Keys.ARROW_LEFT)
    assert tip.text.split("\n")[1::3] == ["·has", "·has", "−25.0 points"]
    section.keys(Keys.ESCAPE)
    assert not tip.is_displayed()


def test_tokens_of_an_answer_with_programs_are_shaded_around_the_replies(section):
    section.open("#explorer?benchmark=svamp&question=en:a")
    tokens = section.texts(".x-token")
    assert "".join(tokens) == "He has 3.print(3 + 4)" + REST
    assert section.texts(".x-code pre .x-token") == ["print(", "3 + 4)"]


def test_tokens_that_do_not_make_the_answer_stand_below_it(section):
    card = section.open("#explorer?benchmark=svamp&question=en:b").all(".x-card")[0]
    assert "Its tokens\nsome else\n" in card.text
    assert section.texts(".x-card:first-child .x-token") == ["some", " else"]


@pytest.mark.parametrize("address", ["?benchmark=mgsm&language=ur", "?benchmark=svamp"])
def test_a_phone_shows_one_column_without_overflow(section, address):
    metrics = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    section.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        section.open(f"#explorer{address}")
        script = "return document.scrollingElement.scrollWidth <= innerWidth"
        assert section.browser.execute_script(script)
        assert section.one(".x-list").rect["x"] == section.one(".x-detail").rect["x"]
        section.all(".x-row")[1].click()
        section.wait()
        assert section.browser.execute_script(script)
    finally:
        section.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_print_shows_the_question_alone(section):
    section.open("#explorer?language=en&question=en:test-1")
    section.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        shown = [part for part in (".x-list", ".x-controls", ".x-question", ".x-cards")
                 if section.one(part).is_displayed()]  # fmt: skip
        assert shown == [".x-question", ".x-cards"]
    finally:
        section.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_a_browser_without_decompression_is_told_so(section):
    script = {"source": "delete window.DecompressionStream"}
    browser = section.browser
    added = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", script)
    try:
        section.open()
        assert "no DecompressionStream" in section.text('[role="alert"]')
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)
