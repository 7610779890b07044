"""What was measured, kept in a run's folder: scores, tables, numbers per latent, and which data they are of."""

from typing import Any

from saelab.core.files import read_tensors, write_json, write_tensors
from saelab.core.log import append_record
from saelab.core.run import Run
from saelab.metrics.measure import Measured
from saelab.metrics.table import write_columns, write_table


def keep_scores(run: Run, measured: Measured, data: dict[str, Any]) -> bool:
    """Write what was measured into a run's folder; whether scores on other data went.

    Earlier scores on the same data stay unless they were measured again; scores on other data go.
    """
    before = run.measured()
    same, held = before.get("data") == data, run.scores()
    earlier = {key: score for key, score in held.items() if same and key not in measured.skipped}
    scores = earlier | measured.as_json()
    again = measured.seconds.keys() | measured.scores.keys()
    skipped = {name: why for name, why in before.get("skipped", {}).items() if same and name not in again}
    # Killed anywhere here, a run never holds numbers of some data that it says are of others.
    for path in [] if same else [run.measured_file, *run.tables.glob("*.parquet"), run.latents_file]:
        path.unlink(missing_ok=True)
    for name, table in measured.tables.items():
        write_columns(run.tables / f"{name}.parquet", table)
    old = read_tensors(run.latents_file)[0] if run.latents_file.exists() else {}
    if measured.latents or old:
        write_tensors(run.latents_file, old | measured.latents)
    run.write_scores(scores)
    write_table(run.table_file, {run.folder.name: scores})
    seconds = {f"seconds.{key}": round(value, 3) for key, value in measured.seconds.items()}
    append_record(run.log_file, {f"measured.{key}": score.value for key, score in measured.scores.items()} | seconds)
    write_json(run.measured_file, {"data": data, "skipped": skipped | measured.skipped})
    return bool(held and before) and not same
