"""`autoloss data`: what it prints of a folder, and what it refuses."""

import pytest

from autoloss_jax.cli import main

FOLD = {
    "train": "0 qid:1 1:1 2:5\n1 qid:1 1:2 2:5\n0 qid:2 1:3 2:5\n2 qid:2 1:4 2:5\n",
    "vali": "1 qid:3 1:1 2:1\n0 qid:3 1:2 2:1\n",
    "test": "1 qid:1 1:1 2:1\n0 qid:1 1:2 2:1\n0 qid:4 1:2 2:1\n",
}


@pytest.fixture
def folder(tmp_path):
    fold = tmp_path / "mine" / "Fold1"
    fold.mkdir(parents=True)
    for name, text in FOLD.items():
        (fold / f"{name}.txt").write_text(text)
    return fold.parent


def call(*arguments):
    return main(["autoloss", "data", "--data_cache=none", *map(str, arguments)])


def test_counts_and_findings_of_a_folder(folder, capsys):
    assert call(folder) == 0
    printed = capsys.readouterr().out
    words = " ".join(printed.split())
    assert "mine: 2 features" in words
    assert "Fold1 train 2 0 4 2/2/2/2 50 % 25 % 25 % 0 %" in words
    assert "Fold1 test 2 1 3 1/1/2/2 67 % 33 % 0 % 0 %" in words
    assert "Strongest single feature: 1, which orders 100 % of the training pairs" in words
    assert "PROBLEM Fold1 train and test 1 query id in both: 1 What to do: keep each" in words
    assert "note Fold1 train 1 of 2 features are constant: 2; 0" not in words
    assert "1 of 2 features are constant: 2 What to do:" in words
    assert max(map(len, printed.splitlines())) <= 120


def test_the_flag_says_the_same_as_the_argument(folder, capsys):
    assert call(folder, "--max_buckets=1") == 0
    expected = capsys.readouterr().out
    assert call("--max_buckets=1", "--data", folder) == 0
    assert capsys.readouterr().out == expected


def test_without_a_folder_it_looks_at_the_synthetic_queries(capsys):
    assert call() == 0
    printed = capsys.readouterr().out
    assert "synthetic-600x24-seed0: 24 features" in printed
    assert "PROBLEM" not in printed


def test_many_labels_are_counted_together(folder, capsys):
    lines = [f"{label} qid:1 1:{label % 3}\n" for label in range(9)]
    (folder / "Fold1" / "train.txt").write_text("".join(lines))
    (folder / "Fold1" / "vali.txt").write_text("1 qid:3 1:1\n0 qid:3 1:2\n")
    (folder / "Fold1" / "test.txt").write_text("1 qid:5 1:1\n0 qid:5 1:2\n")
    assert call(folder) == 0
    assert "9 from 0 to 8" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["absent"], "absent: expected a folder of folds"),
        (["a", "b"], "unexpected argument 'b': autoloss takes one command, and"),
        (["a", "--data", "b"], "expected data once, got a and b"),
        (["tfds:"], "expected names of TensorFlow Datasets"),
        (["--max_buckets=-1"], "expected a whole number of at least 0"),
        (["--seed=1"], "Unknown command line flag 'seed'"),
    ],
)
def test_bad_input_is_refused(arguments, message, capsys):
    assert call(*arguments) == 2
    assert message in capsys.readouterr().err
