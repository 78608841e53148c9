"""A browser for the tests of pages."""

import os

import pytest

from tests import browser as browsers


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A headless Chromium; where there is none, CI fails and other machines skip."""
    try:
        found = browsers.start(tmp_path_factory.mktemp("browser"))
    except ValueError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    yield found
    found.quit()
