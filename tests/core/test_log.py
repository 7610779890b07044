"""The log has one record a line, survives a kill, and holds each step once after resuming."""

import json

import pytest

from saelab.core.log import Log, append_record, read_log


def steps(path):
    return [record["step"] for record in read_log(path)]


def test_records_come_back(tmp_path):
    path = tmp_path / "log.jsonl"
    log = Log(path)
    log.write({"step": 1, "loss": 0.5})
    assert read_log(path) == [{"step": 1, "loss": 0.5}]  # readable while it is written
    log.write({"step": 2, "loss": 0.25})
    log.close()
    assert read_log(path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]


def test_what_is_not_finite_becomes_null(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    log.write({"step": 1, "loss": float("nan"), "fvu": float("inf")})
    log.close()
    assert json.loads((tmp_path / "log.jsonl").read_text()) == {"step": 1, "loss": None, "fvu": None}


def test_resuming_drops_the_steps_that_will_be_written_again(tmp_path):
    path = tmp_path / "log.jsonl"
    log = Log(path)
    for step in (1, 2, 3, 4):
        log.write({"step": step})
    log.close()
    log = Log(path, after=2)
    log.write({"step": 3})
    log.close()
    assert steps(path) == [1, 2, 3]


def test_a_new_run_starts_an_empty_log(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n')
    Log(path).close()
    assert read_log(path) == []


def test_a_last_line_cut_short_is_left_out(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert steps(path) == [1]
    log = Log(path, after=1)
    log.write({"step": 2})
    log.close()
    assert steps(path) == [1, 2]


def test_other_damage_is_named_by_line(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"log\.jsonl, line 2 .*remove that line"):
        read_log(path)


def test_tensorboard_gets_every_number_but_the_step(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = Log(tmp_path / "log.jsonl", tensorboard=tmp_path / "board")
    log.write({"step": 1, "loss": 0.5})
    log.write({"step": 2, "loss": 0.25})
    log.close()
    events = EventAccumulator(str(tmp_path / "board")).Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0.5), (2, 0.25)]


def test_a_record_that_is_noted_again_stands_once(tmp_path):
    path = tmp_path / "log.jsonl"
    log = Log(path)
    log.write({"step": 7, "loss": 0.5})
    log.close()
    for seconds, value in ((1.0, 0.25), (2.0, 0.25), (3.0, 0.125), (4.0, 0.25)):
        append_record(path, {"measured.fvu": value, "seconds.Reconstruction": seconds})
    found = [(record.get("measured.fvu"), record.get("seconds.Reconstruction")) for record in read_log(path)]
    assert found == [(None, None), (0.25, 2.0), (0.125, 3.0), (0.25, 4.0)]
