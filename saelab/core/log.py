"""The record of a run: one JSON object a line, always; TensorBoard as well where it is wanted."""

import json
import math
from pathlib import Path
from typing import Any

from saelab.core.files import write_text
from saelab.core.read import expect, parse_json

Record = dict[str, float | int]
STEP = {"step": int}
TRAINING = {"rows": int, "lr": float, "l0": float, "fvu": (float, None), "rows_per_second": (float, None)}
REMOVE = "remove that line"


class Log:
    """`log.jsonl`: records by step, appended as they come.

    Args:
        path: of the file.
        after: on resuming, records of later steps than this are dropped: they will be written again.
        tensorboard: a folder for TensorBoard's event files, if any.
    """

    def __init__(self, path: Path, after: int = 0, tensorboard: Path | None = None):
        kept = [record for record in read_log(path) if record["step"] <= after] if path.exists() else []
        write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = path.open("a", encoding="utf-8")
        self._board = _board(tensorboard, after) if tensorboard else None

    def write(self, record: Record, counts: dict[str, list[int]] | None = None) -> None:
        """Append a record; it must have a `step`. Numbers that are not finite become null.

        Args:
            record: the numbers.
            counts: histograms, which stand beside them in the file only.
        """
        plain = {key: value if math.isfinite(value) else None for key, value in record.items()}
        self._file.write(json.dumps(plain | (counts or {})) + "\n")
        self._file.flush()
        if self._board:
            for key, value in record.items():
                if key != "step":
                    self._board.add_scalar(key, value, record["step"])

    def close(self) -> None:
        self._file.close()
        if self._board:
            self._board.close()


def append_record(path: Path, record: Record) -> None:
    """Add a record about a finished run to its log; it stands at the step at which training ended.

    It takes the place of a last one that differs in what begins with `seconds.` only, which was written by a command
    that was killed before its end and given again.
    """
    records = read_log(path) if path.exists() else []
    finite = {key: value if math.isfinite(value) else None for key, value in record.items()}
    line = {"step": records[-1]["step"] if records else 0, **finite}
    if records and _without_seconds(records[-1]) == _without_seconds(line):
        records.pop()
    write_text(path, "".join(json.dumps(one) + "\n" for one in [*records, line]))


def _without_seconds(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if not key.startswith("seconds.")}


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log. A last line cut short by a kill is left out; any other damage is a ValueError."""
    # Not `text_of`: a kill may have cut a character of the last line in two.
    lines = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        if number == len(lines):  # only a line that ends was written whole
            try:
                records += [_record(line, where)] if line else []
            except ValueError:
                break
        else:
            records.append(_record(line, where))
    return records


def _record(line: bytes, where: str) -> dict[str, Any]:
    record: dict[str, Any] = parse_json(line, where, STEP, remedy=REMOVE)
    expect(record, {str: (float, None, [int])}, where, REMOVE)
    return record


def read_training(path: Path) -> list[dict[str, Any]]:
    """The records of training steps, without those that measurements left; ValueError for a log that is damaged.

    Of each `step`, `rows`, `lr` and `l0` are numbers, `fvu` and `rows_per_second` numbers or None.
    """
    records = [record for record in read_log(path) if "lr" in record]
    for record in records:
        expect(record, TRAINING, f"{path}, step {record['step']}", REMOVE)
    return records


def _board(folder: Path, after: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        message = "TensorBoard is not installed: `pip install tensorboard`, or leave --tensorboard out"
        raise ValueError(message) from None
    return SummaryWriter(str(folder), purge_step=after + 1)
