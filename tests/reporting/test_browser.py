"""The report page in headless Chromium: systems, themes, widths, no network and no errors."""

import json

import pytest
from selenium.webdriver.support.wait import WebDriverWait

from qalign_jax.reporting import page
from tests.reporting.answers import number_line, write_answers

pytestmark = pytest.mark.slow
LANGUAGES = ("bn", "th", "sw", "ja", "zh", "de", "fr", "ru", "es", "en")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    figures = {key: 40.0 for key in (*LANGUAGES, "average", "non_english")}
    systems = {name: {"mgsm": figures} for name in ("base", "ralign", "qalign", "x" * 99)}
    for system in ("ralign", "qalign"):
        lines = [number_line("en", system, number) for number in range(3)]
        write_answers(workdir / "evaluation" / system / "mgsm" / "en.jsonl", *lines)
    (workdir / "evaluation" / "results.json").write_text(json.dumps({"systems": systems}))
    (workdir / "config.json").write_text(json.dumps({"name": "x" * 99, "notes": "x" * 99}))
    return f"file://{page.write(workdir)}"


@pytest.fixture
def opened(browser, address):
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    browser.get(address)
    browser.execute_script("localStorage.clear()")
    browser.get(address)
    WebDriverWait(browser, 10).until(lambda browser: len(find(browser, ".x-card")) == 2)
    yield browser
    assert browser.get_log("browser") == []


def find(browser, selector):
    return browser.find_elements("css selector", selector)


def colour(browser):
    return browser.execute_script("return getComputedStyle(document.body).backgroundColor")


def test_a_chip_hides_its_system_in_tables_and_charts(opened):
    marks = find(opened, "main [data-system='ralign']")
    others = find(opened, "main [data-system='qalign']")
    assert len(marks) == len(others) > 12 and all(each.is_displayed() for each in marks)
    [chip] = find(opened, "[data-toggle='ralign']")
    chip.click()
    assert chip.get_attribute("aria-pressed") == "false"
    assert not any(each.is_displayed() for each in marks)
    assert all(each.is_displayed() for each in others)
    chip.click()
    assert chip.get_attribute("aria-pressed") == "true"
    assert all(each.is_displayed() for each in marks)


def test_a_chip_hides_its_system_among_the_answers_of_every_question(opened):
    find(opened, "[data-toggle='ralign']")[0].click()
    opened.switch_to.active_element.send_keys("j")
    ralign, qalign = find(opened, ".x-card")
    assert find(opened, ".x-head bdi")[0].text == "test-1"
    assert qalign.is_displayed() and not ralign.is_displayed()


# Stands in for the browser's storage, which it may write after the page is loaded again.
STORAGE = """
Storage.prototype.setItem = (key, value) => { window.name = value; };
Storage.prototype.getItem = () => window.name || null;
"""


@pytest.fixture
def storage(opened):
    added = opened.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": STORAGE})
    opened.refresh()
    yield
    opened.execute_script("window.name = ''")
    opened.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


def test_the_theme_follows_the_system_and_then_the_reader(opened, storage):
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    night, day = "rgb(19, 22, 25)", "rgb(253, 253, 252)"
    WebDriverWait(opened, 10).until(lambda browser: colour(browser) == night)
    find(opened, "[data-theme-button]")[0].click()
    WebDriverWait(opened, 10).until(lambda browser: colour(browser) == day)
    opened.refresh()
    WebDriverWait(opened, 10).until(lambda browser: colour(browser) == day)
    assert find(opened, "html")[0].get_attribute("data-theme") == "light"


@pytest.mark.parametrize("width", [390, 900, 1440])
def test_no_width_scrolls_sideways(opened, width):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    opened.refresh()
    page_width = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert opened.execute_script(f"return {page_width}") == 0


def test_the_page_asks_for_nothing_but_itself(opened, address):
    opened.get_log("performance")
    opened.refresh()
    messages = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    asked = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert set(asked) == {address}
