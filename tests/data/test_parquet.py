"""The checked reader of Parquet files: what is expected comes back, and what is not is one line."""

import pyarrow
import pytest

from saelab.data.parquet import read_parquet, write_parquet


def test_whole_numbers_come_as_the_floats_that_are_expected(tmp_path):
    write_parquet(tmp_path / "t.parquet", pyarrow.table({"value": [1, None, 3], "latent": [4, 5, 6]}))
    table = read_parquet(tmp_path / "t.parquet", {"value": (float, None), "latent": int})
    assert table["value"].to_pylist() == [1.0, None, 3.0]
    assert pyarrow.types.is_float64(table["value"].type)
    assert pyarrow.types.is_integer(table["latent"].type)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"valeu": float}, "has no column 'valeu'; did you mean 'value'"),
        ({"value": str}, "column value: expected a text, it holds int64"),
        ({"gap": float}, "column gap: expected a number in each line, some hold none"),
    ],
)
def test_a_column_that_is_not_as_expected_is_named(tmp_path, columns, message):
    write_parquet(tmp_path / "t.parquet", pyarrow.table({"value": [1, 2], "gap": [0.5, None]}))
    with pytest.raises(ValueError, match=message) as error:
        read_parquet(tmp_path / "t.parquet", columns)
    assert str(tmp_path / "t.parquet") in str(error.value)
