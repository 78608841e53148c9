"""A headless Chromium for tests of pages."""

import os
import shutil

from selenium import webdriver

_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--window-size=1280,900",
)  # fmt: skip


def start(profile: str | os.PathLike) -> webdriver.Chrome:
    """Starts Debian's Chromium with an empty folder as its profile.

    Its logs hold the console and every network event.

    Raises:
      ValueError: there is none.
    """
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        raise ValueError("no browser is found: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*_FLAGS, f"--user-data-dir={os.fspath(profile)}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    found.get("about:blank")  # in place of the new tab's page and its requests
    return found
