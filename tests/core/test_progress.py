"""Progress is a line on a log file, a bar on a terminal and nothing where it is not wanted."""

from saelab.core import progress as module
from saelab.core.progress import progress


def test_lines_say_how_much_is_done_and_left(capsys, monkeypatch):
    monkeypatch.setattr(module, "LINE_EVERY", 0.0)
    with progress("train", total=1000, unit="rows", done=400) as bar:
        bar.advance(100, "fvu 0.5")
        bar.advance(100)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("train: 500 of 1,000 rows, ETA ")
    assert lines[1].endswith("fvu 0.5")
    assert lines[-1].startswith("train: 600 rows in ")


def test_lines_are_rare(capsys):
    with progress("train", total=1000, unit="rows") as bar:
        for _ in range(1000):
            bar.advance(1)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress("train", total=10, unit="rows") as bar:
        bar.advance(10, "all done")
    assert "all done" in capsys.readouterr().err


def test_nothing_is_shown_where_it_is_not_wanted(capsys):
    with progress("train", total=10, unit="rows", show=False) as bar:
        bar.advance(10, "all done")
    assert capsys.readouterr().err == ""
