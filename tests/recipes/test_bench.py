"""`saelab bench` times what is installed, says what is not, and keeps the figures."""

import json

import pytest

from saelab.kernels import native
from saelab.recipes.bench import bench
from saelab.recipes.contestants import CONTESTANTS, Contestant

SMALL = {"d_in": 32, "n_latents": 1024, "k": 4, "batch": 128, "rounds": 2}


@pytest.fixture
def contestants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONTESTANTS, "elsewhere", (Contestant, "a_library_that_is_not_there"))
    monkeypatch.setitem(CONTESTANTS, "broken", (Contestant, None))  # its process knows no such name


@pytest.mark.usefixtures("contestants")
def test_a_table_with_ratios_and_where_the_time_goes_and_who_was_left_out(tmp_path, capsys):
    names = ["saelab", "saelab, dense reference", "one fp32 encoder product"]
    bench(**SMALL, only=[*names, "elsewhere", "broken"], out=str(tmp_path / "bench.json"))
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "bench.json").read_text())
    by_name = {one["name"]: one for one in found["results"] if "step" in one}
    assert list(by_name) == names
    for one in by_name.values():
        assert one["step"]["least"] <= one["step"]["median"] <= one["step"]["most"]
        assert len(one["turns"]) == 2
        assert one["name"] in printed
    assert by_name["saelab"]["fvu"] == pytest.approx(by_name["saelab, dense reference"]["fvu"], rel=1e-3)
    assert "1.00" in printed
    if native.library():
        assert 0 < sum(by_name["saelab"]["stages"].values()) < 1.1
        assert "update" in printed
    assert "left out elsewhere: a_library_that_is_not_there is not installed here" in printed
    assert "left out broken: KeyError: 'broken'" in printed


@pytest.mark.usefixtures("contestants")
def test_without_a_compiler(capsys):
    bench(**SMALL | {"rounds": 1}, only=["saelab, no compiler", "elsewhere"])
    assert "saelab, no compiler" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"only": ["nobody"]}, "unknown contestant 'nobody'; there are: .*one fp32"),
        ({"k": 2000}, "k must be at most n_latents, got 2000 and 1024"),
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
    ],
)
def test_wrong_settings(setting, message):
    with pytest.raises(ValueError, match=message):
        bench(**SMALL | setting)
