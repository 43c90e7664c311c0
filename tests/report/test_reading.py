"""What the report reads besides JSON: figures of single queries, and the log's times."""

import numpy as np
import pytest

from autoloss_jax.errors import AutolossError
from autoloss_jax.report.reading import read_run


def test_differences_leave_out_what_is_undefined(tmp_path, example):
    arrays = {
        "names": np.array(["a", "b"]),
        "query_ids": np.array(["1", "2", "3"]),
        "values": np.array([[0.5, np.nan, 0.25], [0.25, np.nan, 0.5]]),
    }
    per_query = read_run(example.write_folder(tmp_path / "run", per_query=arrays)).per_query
    difference = per_query.difference("a", "b")
    assert difference.query_ids == ["1", "3"]
    assert difference.values.tolist() == [0.25, -0.25]
    assert per_query.difference("a", "absent") is None
    per_query.values[:] = np.nan
    assert per_query.difference("a", "b") is None


def test_figures_of_fresh_seeds_take_the_place_of_the_others(tmp_path, example):
    arrays = {
        "names": np.array(["a", "b", "c"]),
        "query_ids": np.array(["1", "2"]),
        "values": np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]),
        "confirmed_names": np.array(["c", "a"]),
        "confirmed_values": np.array([[0.7, 0.8], [0.9, np.nan]]),
    }
    per_query = read_run(example.write_folder(tmp_path / "run", per_query=arrays)).per_query
    np.testing.assert_array_equal(per_query.values, [[0.9, np.nan], [0.3, 0.4], [0.7, 0.8]])


CONFIRMED = {"names": np.array(["a"]), "query_ids": np.array(["1"]), "values": np.zeros((1, 1))}


@pytest.mark.parametrize(
    "arrays",
    [
        CONFIRMED | {"confirmed_names": np.array(["b"]), "confirmed_values": np.zeros((1, 1))},
        CONFIRMED | {"confirmed_names": np.array(["a"]), "confirmed_values": np.zeros((1, 2))},
        CONFIRMED | {"confirmed_names": np.array(["a"])},
        {"names": np.array(["a"])},
        {"names": np.array(["a"]), "query_ids": np.array(["1"]), "values": np.zeros((2, 1))},
        {"names": np.array(["a"]), "query_ids": np.array(["1"]), "values": np.array([["x"]])},
        {
            "names": np.array(["a"], object),
            "query_ids": np.array(["1"]),
            "values": np.zeros((1, 1)),
        },
    ],
)
def test_damaged_figures_of_queries_are_named(tmp_path, example, arrays):
    folder = example.write_folder(tmp_path / "run", per_query=arrays)
    with pytest.raises(AutolossError, match=r"per_query\.npz is damaged .*: expected names"):
        read_run(folder)


def test_a_torn_file_of_queries_is_named(tmp_path, example):
    folder = example.write_folder(tmp_path / "run")
    for content in (b"", b"PK\x03\x04torn", b"\x93NUMPY"):
        (folder / "per_query.npz").write_bytes(content)
        with pytest.raises(AutolossError, match=r"per_query\.npz is damaged"):
            read_run(folder)


def test_pauses_do_not_count_as_work(tmp_path, example):
    folder = example.write_folder(tmp_path / "run", log=example.LOG)
    assert read_run(folder).seconds == 120 + 252
    (folder / "run.log").write_text("no time\n2026-99-99 10:00:00,000 INFO no date\n")
    assert read_run(folder).seconds is None
    (folder / "run.log").unlink()
    assert read_run(folder).seconds is None
