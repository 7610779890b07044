"""One small explorer for all tests of this folder."""

import os

import pytest
from explorer.world import make_meta, make_run, served, workspace_of


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explorer")
    return [make_run(folder, 0), make_run(folder, 1, k=6)]


@pytest.fixture(scope="session")
def workspace(runs):
    return workspace_of(*runs, make_meta(runs[0].parent / "meta", runs[0]))


@pytest.fixture(scope="session")
def site(workspace):
    """The explorer, served."""
    with served(workspace) as found:
        yield found


SKIPPED: list[str] = []
MANDATORY = "SAELAB_BROWSER_TESTS"
"""If this environment variable is 1, a missing Chromium is a failure."""


@pytest.fixture(scope="session")
def chromium():
    """A headless Chromium; without one, tests that need it are skipped, and the summary says so loudly."""
    from explorer.chromium import Chromium, binary

    if not binary():
        if os.environ.get(MANDATORY) == "1":
            pytest.fail("there is no Chromium here, and the browser tests are mandatory: apt-get install chromium")
        SKIPPED.append("")
        pytest.skip("needs Chromium: apt-get install chromium")
    with Chromium() as browser:
        yield browser


def pytest_terminal_summary(terminalreporter):
    if SKIPPED:
        terminalreporter.section("NO BROWSER, NO BROWSER TESTS", sep="!", red=True, bold=True)
        terminalreporter.write_line(
            "Every test of the explorer in a browser was SKIPPED: there is no Chromium on this machine.\n"
            "`apt-get install chromium`, or CHROMIUM=/path/to/it, and run them again."
        )
