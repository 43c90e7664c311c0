"""TensorFlow Datasets, faked from the feature specifications of the real builders."""

import logging
import sys
import types

import numpy as np
import pytest

from autoloss_jax.data import load_dataset, load_tfds, make_dataset
from autoloss_jax.errors import AutolossError

MSLR, ISTELLA, YAHOO = "mslr_web/10k_fold1", "istella/main", "yahoo_ltrc/set1"
WIDTHS = {MSLR: 136, "mslr_web/10k_fold2": 136, ISTELLA: 220, YAHOO: 699}
"""Of `float_features` in versions 1.2.0, 1.2.0 and 1.1.0."""


def example(width, labels, query_id, seed=0):
    """A query as version 1.2.0 of the builders gives it."""
    generator = np.random.default_rng([seed, len(labels)])
    return {
        "doc_id": np.arange(len(labels), dtype=np.int64),
        "float_features": generator.normal(size=(len(labels), width)),
        "label": np.array(labels, np.float64),
        "query_id": query_id.encode(),  # TensorFlow's strings are bytes
    }


def splits_of(name, with_vali=True):
    width = WIDTHS[name]
    splits = {
        "train": [example(width, [0, 2], "7"), example(width, [1, 0, 4], "3")],
        "vali": [example(width, [1], "11")],
        "test": [example(width, [0, 1, 0, 2], "20")],
    }
    return splits if with_vali else {k: v for k, v in splits.items() if k != "vali"}


class Builder:
    """What the loader uses of tfds.core.DatasetBuilder."""

    def __init__(self, splits, random_access=True):
        self.splits, self.random_access = splits, random_access
        self.info = types.SimpleNamespace(splits=list(splits))
        self.prepared_as = None

    def download_and_prepare(self, *, file_format):
        self.prepared_as = file_format

    def as_data_source(self):
        assert self.prepared_as == "array_record"
        if not self.random_access:
            raise NotImplementedError("Random access data source for TFRECORD is not supported")
        return dict(self.splits)

    def as_dataset(self, *, split):
        return ("tf.data", self.splits[split])


@pytest.fixture
def library(monkeypatch):
    """A fake module tensorflow_datasets, whose `builders` a test may change."""
    fake = types.ModuleType("tensorflow_datasets")
    fake.builders = {
        MSLR: Builder(splits_of(MSLR)),
        "mslr_web/10k_fold2": Builder(splits_of(MSLR)),
        ISTELLA: Builder(splits_of(ISTELLA, with_vali=False)),
        YAHOO: Builder(splits_of(YAHOO)),
    }
    fake.asked = []

    def builder(name, *, data_dir):
        fake.asked.append((name, data_dir))
        if name not in fake.builders:
            raise ValueError(f"Dataset {name} not found.\nAvailable:\n" + "- other\n" * 500)
        return fake.builders[name]

    fake.builder, fake.as_numpy = builder, lambda dataset: iter(dataset[1])
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake)
    monkeypatch.delitem(sys.modules, "tensorflow_datasets.ranking", raising=False)
    return fake


def test_queries_come_as_the_builder_has_them(library):
    data = load_dataset(f"tfds:{MSLR}")
    (fold,) = data.folds
    assert (data.name, fold.name, data.num_features) == (MSLR, "10k_fold1", 136)
    assert fold.train.query_ids == ("7", "3")
    np.testing.assert_array_equal(fold.train.offsets, [0, 2, 5])
    np.testing.assert_array_equal(fold.train.labels, [0, 2, 1, 0, 4])
    first = library.builders[MSLR].splits["train"][0]["float_features"]
    np.testing.assert_array_equal(fold.train.features[:2], first.astype(np.float32))
    assert fold.validation.query_ids == ("11",)
    np.testing.assert_array_equal(fold.test.labels, [0, 1, 0, 2])
    assert data.sha256 == make_dataset("another name", data.folds).sha256


def test_data_prepared_without_random_access_are_the_same(library):
    expected = load_tfds(YAHOO)
    library.builders[YAHOO] = Builder(splits_of(YAHOO), random_access=False)
    assert load_tfds(YAHOO).sha256 == expected.sha256
    assert expected.num_features == 699


def test_several_names_are_folds_and_the_folder_is_passed_on(library):
    data = load_tfds(f"{MSLR}, mslr_web/10k_fold2", data_dir="somewhere")
    assert [fold.name for fold in data.folds] == ["10k_fold1", "10k_fold2"]
    assert library.asked == [(MSLR, "somewhere"), ("mslr_web/10k_fold2", "somewhere")]


def test_without_a_validation_split_training_queries_become_it(library, caplog):
    width = WIDTHS[ISTELLA]
    train = [example(width, [0, 1], str(q)) for q in range(10)]
    library.builders[ISTELLA].splits["train"] = train
    with caplog.at_level(logging.WARNING):
        (fold,) = load_tfds(ISTELLA).folds
    assert (len(fold.train), len(fold.validation)) == (8, 2)
    assert "main: no validation queries; 2 of the 10 training queries" in caplog.text


def test_a_value_beyond_32_bits_is_absent_with_a_warning(library, caplog):
    splits = library.builders[YAHOO].splits
    splits["train"][1]["float_features"][2, 5] = 1e137
    with caplog.at_level(logging.WARNING):
        (fold,) = load_tfds(YAHOO).folds
    assert fold.train.features[4, 5] == 0
    # 5 documents of 699 features
    assert "train: 1 of 3495 values are beyond the range" in caplog.text
    assert "1e+137" in caplog.text


def test_first_versions_have_an_entry_for_every_feature_and_no_ids(library):
    def old(labels):
        columns = {f"feature_{n}": np.full(len(labels), float(n)) for n in (10, 2, 1)}
        return columns | {"label": np.array(labels, np.float64)}

    library.builders[ISTELLA] = Builder(
        {"train": [old([0, 1]), old([1])], "vali": [old([1])], "test": [old([2])]}
    )
    (fold,) = load_tfds(ISTELLA).folds
    np.testing.assert_array_equal(fold.train.features, [[1, 2, 10]] * 3)
    assert fold.train.query_ids == ("train-1", "train-2")
    assert fold.test.query_ids == ("test-1",)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda s: s.pop("test"), "expected the splits train, vali and test, got train, vali"),
        (lambda s: s.clear(), "got none"),
        (lambda s: s["train"].clear(), "10k_fold1, train: no queries"),
        (lambda s: s["test"][0].pop("label"), "test, query 1: no 'label'"),
        (
            lambda s: [s["vali"][0].pop(name) for name in ("float_features", "doc_id")],
            "vali, query 1: no 'float_features'",
        ),
        (
            lambda s: s["train"][1].update(label=np.zeros(2)),
            r"train, query 2: float_features of shape \(3, 136\) and label of shape \(2,\)",
        ),
        (
            lambda s: s["train"][1].update(float_features=np.zeros((3, 4))),
            r"train: queries of \[4, 136\] features, expected one number",
        ),
        (
            lambda s: s["train"][1].update(label=np.zeros(0), float_features=np.zeros((0, 136))),
            "query '3' has no documents",
        ),
        (
            lambda s: s["train"][1].update(label=np.array(["a"] * 3)),
            "train, query 2, label: an array of <U1, expected an array of real numbers",
        ),
        (
            lambda s: s["test"][0].update(float_features=np.full((4, 136), "x", object)),
            "test: float_features that are no numbers",
        ),
        (lambda s: s["vali"][0].update(label=np.array([-1.0])), "label -1.0 of document 0"),
        (
            lambda s: s["vali"].__setitem__(0, {"label": np.zeros(2), "f_1": np.zeros(3)}),
            r"vali, query 1: entries of shapes \[\(3,\)\], expected \(2,\) as of label",
        ),
        (lambda s: s["train"][0]["float_features"].fill(np.nan), "feature 0 of document 0 is nan"),
    ],
)
def test_what_has_another_form_is_refused(library, spoil, message):
    spoil(library.builders[MSLR].splits)
    with pytest.raises(AutolossError, match=message):
        load_tfds(MSLR)


def test_damaged_files_are_named_by_the_query_that_cannot_be_read(library):
    def damaged(examples):
        yield examples[0]
        raise RuntimeError("corrupted record at 1234")

    splits = library.builders[MSLR].splits
    splits["train"] = damaged(splits["train"])
    message = "10k_fold1, train, query 2: TensorFlow Datasets cannot read it: corrupted record at"
    with pytest.raises(AutolossError, match=message):
        load_tfds(MSLR)


def test_ids_that_are_no_utf_8_are_shown_by_their_bytes(library):
    library.builders[MSLR].splits["test"][0]["query_id"] = b"a\xff"
    assert load_tfds(MSLR).folds[0].test.query_ids == ("a\\xff",)


def test_an_unknown_name_is_refused_briefly(library):
    with pytest.raises(AutolossError, match="tfds:mslr: TensorFlow Datasets cannot provide") as got:
        load_tfds("mslr")
    assert len(str(got.value)) < 500
    assert "such as mslr_web/10k_fold1" in str(got.value)


@pytest.mark.parametrize("name", ["", "mslr_web/10k_fold1,"])
def test_an_empty_name_is_refused(name):
    with pytest.raises(AutolossError, match="expected names of TensorFlow Datasets"):
        load_tfds(name)


def test_a_missing_library_says_what_to_install(monkeypatch, library):
    def without_tensorflow(*, file_format):
        raise ModuleNotFoundError("No module named 'tensorflow'")

    library.builders[MSLR].download_and_prepare = without_tensorflow
    with pytest.raises(AutolossError, match=r"'autoloss_jax\[tfds\]' tensorflow"):
        load_tfds(MSLR)
    del library.builder
    with pytest.raises(AutolossError, match="whose import is incomplete"):
        load_tfds(MSLR)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(AutolossError, match=r"pip install 'autoloss_jax\[tfds\]'"):
        load_tfds(MSLR)
