"""The look at a data set: its counts, and that each planted fault is found, and only it."""

import numpy as np
import pytest

from autoloss_jax.data import Fold, Queries, make_dataset, summarize, synthetic

QUERIES, DOCUMENTS, FEATURES = 40, 8, 5


def ordinary(seed, count=QUERIES):
    """Queries without any fault: every list has labels 0 to 2 and 5 features that order little."""
    generator = np.random.default_rng(seed)
    labels = np.tile([0, 1, 0, 2, 0, 1, 0, 0], count).astype(float)
    features = generator.normal(size=(count * DOCUMENTS, FEATURES)) + 0.2 * labels[:, None]
    offsets = np.arange(0, count * DOCUMENTS + 1, DOCUMENTS)
    return features, labels, offsets, [f"{seed}-{q}" for q in range(count)]


def dataset(train=None, validation=None, test=None):
    parts = [
        Queries(*(given or ordinary(seed)))
        for seed, given in enumerate((train, validation, test or ordinary(2, 320)))
    ]
    return make_dataset("planted", [Fold("Fold1", *parts)])


def found(data, **options):
    return {f.code: f for f in summarize(data, **options).findings}


def changed(seed=0, **change):
    """`ordinary`, with functions applied to copies of its features or labels."""
    features, labels, offsets, names = ordinary(seed)
    features = change.get("features", lambda x, y: x)(features.copy(), labels)
    labels = change.get("labels", lambda y: y)(labels.copy())
    return features, labels, offsets, names


def test_ordinary_data_have_no_findings():
    assert found(dataset()) == {}


def test_counts_by_hand():
    parts = [
        Queries(np.eye(7, 3), [0, 0, 1, 0, 3, 0, 0], [0, 2, 6, 7], names)
        for names in ("abc", "def", "ghi")
    ]
    data = make_dataset("d", [Fold("F", *parts)])
    counts = summarize(data, max_buckets=1).roles[0]
    assert (counts.fold, counts.role) == ("F", "train")
    assert (counts.queries, counts.documents) == (3, 7)
    assert counts.empty_queries == 2  # a and c
    assert counts.lengths == (1, 2, 4, 4)  # of 2, 4, 1
    assert counts.labels == {0.0: 5, 1.0: 1, 3.0: 1}
    assert counts.padding == pytest.approx(1 - 7 / 12)  # three lists padded to 4
    assert summarize(data, max_buckets=3).roles[0].padding == 0


def test_the_strongest_feature_and_what_it_orders():
    def plant(x, y):
        x[:, 3] = -y + 0.3 * x[:, 3]
        return x

    feature, share = summarize(dataset(changed(features=plant))).strongest
    assert feature == 4  # counted from 1
    assert 0.9 < share <= 1


def put(column, values):
    def change(x, y):
        x[:, column] = values(x, y)
        return x

    return change


@pytest.mark.parametrize(
    "code, kind, change, said",
    [
        ("constant_features", "note", put(2, lambda x, y: 3.5), "1 of 5 features are constant: 3"),
        ("copied_features", "note", put(4, lambda x, y: x[:, 1]), "copies of others: 5 of 2"),
        ("label_leak", "problem", put(0, lambda x, y: 2 * y - 1), "100 % of the pairs"),
        ("label_leak", "problem", put(0, lambda x, y: -y + 0.01 * x[:, 0]), "label does: 1"),
        ("scales", "note", put(1, lambda x, y: 1e6 * x[:, 1]), "very different scales"),
        (
            "query_features", "note",
            put(3, lambda x, y: np.repeat(x[::DOCUMENTS, 3], DOCUMENTS)),
            "the same for all documents of a query: 4",
        ),
        (
            "heavy_tails", "note", put(1, lambda x, y: np.where(np.arange(len(y)) == 9, 60.0,
            np.abs(x[:, 1]))),
            "1 of 5 features have values further than 10",
        ),
    ],
)  # fmt: skip
def test_a_fault_of_features_is_found(code, kind, change, said):
    findings = found(dataset(changed(features=change)))
    assert set(findings) == {code}
    assert findings[code].kind == kind
    assert findings[code].where == "Fold1 train"
    assert said in findings[code].what
    assert findings[code].advice


def test_a_constant_feature_that_varies_elsewhere_says_so():
    data = dataset(changed(features=put(2, lambda x, y: 0)))
    assert "1 of them vary in validation or test" in found(data)["constant_features"].what


def test_sparse_features_are_found():
    def sparse(x, y):
        x[np.arange(len(x)) % 20 != 0, :3] = 0
        return x

    findings = found(dataset(changed(features=sparse)))
    assert "3 of 5 features are 0 for more than 90 %" in findings["sparse_features"].what


@pytest.mark.parametrize(
    "code, kind, change, said",
    [
        ("no_zero_label", "problem", lambda y: y + 1, "the smallest is 1"),
        ("one_label", "problem", lambda y: 0 * y + 2, "every document has label 2"),
        ("fractional_labels", "note", lambda y: np.where(y == 1, 0.5, y), "such as 0.5"),
        ("large_labels", "note", lambda y: 5 * y, "10, whose gain is 1023"),
    ],
)
def test_a_fault_of_labels_is_found(code, kind, change, said):
    parts = [changed(seed, labels=change) for seed in range(3)]
    findings = found(dataset(*parts))
    assert {code} <= set(findings) <= {code, "few_test_queries"}
    assert findings[code].kind == kind
    assert findings[code].where == "Fold1 train; also Fold1 validation, Fold1 test"
    assert said in findings[code].what


def relabelled(seed, labels_of_a_query, queries):
    def change(labels):
        for q in queries:
            labels[q * DOCUMENTS : (q + 1) * DOCUMENTS] = labels_of_a_query
        return labels

    return changed(seed, labels=change)


def test_empty_and_flat_queries_are_counted():
    findings = found(dataset(relabelled(0, 0, [1, 3])))
    assert "2 of 40 queries (5.0 %) have no relevant document" in findings["empty_queries"].what
    assert set(findings) == {"empty_queries"}
    findings = found(dataset(relabelled(0, 1, [5])))
    assert findings["flat_queries"].what.startswith("1 query with one and the same positive label")
    findings = found(dataset(relabelled(0, 0, range(QUERIES))))
    assert findings["all_empty"].kind == "problem"
    assert findings["one_label"].kind == "problem"


def test_documents_in_the_order_of_their_labels_are_found():
    findings = found(dataset(relabelled(0, [2, 1, 1, 0, 0, 0, 0, 0], range(QUERIES))))
    assert set(findings) == {"sorted_by_label"}
    assert "in 100 % of the queries" in findings["sorted_by_label"].what


def test_duplicate_documents_are_counted_and_conflicts_are_a_problem():
    def copy(pairs):
        def change(x, y):
            for first, second in pairs:
                x[second] = x[first]
            return x

        return change

    harmless = found(dataset(changed(features=copy([(0, 2), (8, 10), (8, 12)]))))  # all of label 0
    assert set(harmless) == {"duplicate_documents"}
    assert harmless["duplicate_documents"].kind == "note"
    assert "3 documents (0.9 %)" in harmless["duplicate_documents"].what
    assert "in 2 queries" in harmless["duplicate_documents"].what
    unlike = found(dataset(changed(features=copy([(8 * q, 8 * q + 1) for q in range(4)]))))
    assert unlike["duplicate_documents"].kind == "problem"
    assert "4 of them under another label" in unlike["duplicate_documents"].what
    # The same document of another query is none.
    assert found(dataset(changed(features=copy([(0, 8)])))) == {}


def test_negative_zero_is_zero():
    features, *rest = changed(features=lambda x, y: np.where(np.arange(len(x))[:, None] < 3, 0, x))
    features[1] = -0.0
    findings = found(dataset((features, *rest)))
    assert "2 documents" in findings["duplicate_documents"].what


def test_queries_that_are_there_twice_are_found():
    features, labels, offsets, names = ordinary(0)
    features[:DOCUMENTS] = features[DOCUMENTS : 2 * DOCUMENTS][::-1]  # in another order
    labels[:DOCUMENTS] = labels[DOCUMENTS : 2 * DOCUMENTS][::-1]
    findings = found(dataset((features, labels, offsets, names)))
    assert set(findings) == {"duplicate_queries"}
    assert findings["duplicate_queries"].what.startswith("1 query with the documents")


def test_queries_shared_between_roles_are_found_by_id_and_by_content():
    train = ordinary(0)
    by_id = found(dataset(validation=(*ordinary(1)[:3], [*train[3][:2], *ordinary(1)[3][2:]])))
    (shared,) = by_id.values()
    assert (shared.kind, shared.where) == ("problem", "Fold1 train and validation")
    assert shared.what == "2 query ids in both: 0-0, 0-1"
    features, labels, offsets, names = ordinary(2, 320)
    features[:16], labels[:16] = train[0][:16], train[1][:16]
    (shared,) = found(dataset(test=(features, labels, offsets, names))).values()
    assert (shared.kind, shared.where) == ("problem", "Fold1 train and test")
    assert shared.what.startswith("2 queries of test with the documents and labels of one of train")
    assert shared.what.endswith("2-0, 2-1")


def test_other_labels_in_another_role_are_found_and_chance_is_not():
    more_relevant = relabelled(1, [2, 2, 1, 1, 1, 0, 0, 0], range(QUERIES))
    findings = found(dataset(validation=more_relevant))
    assert "label_shift_validation" in findings
    # 3/8 of the labels are 0 instead of 5/8, and 2/8 are 2 instead of 1/8.
    assert "25 % of the documents" in findings["label_shift_validation"].what
    few = relabelled(1, [2, 2, 1, 1, 1, 0, 0, 0], range(2))
    assert found(dataset(validation=few)) == {}


def test_long_lists_and_padding_are_found():
    features, labels, offsets, names = ordinary(0, 151)
    long = np.append(np.arange(0, 26 * DOCUMENTS, DOCUMENTS), offsets[-1])  # the last: 1,008
    findings = found(dataset((features, labels, long, names[: len(long) - 1])), max_buckets=1)
    assert set(findings) == {"long_lists", "padding"}
    assert "1 list of more than 1000 documents (the longest 1008, the median 8)" in (
        findings["long_lists"].what
    )
    assert "in 1 length bucket 95 % of all places" in findings["padding"].what
    assert "--max_buckets 2 leaves 0 %" in findings["padding"].advice


def test_few_test_queries_are_counted_over_all_folds():
    fold = dataset(test=ordinary(2, 160)).folds[0]
    assert "160 test queries" in found(make_dataset("d", [fold]))["few_test_queries"].what
    assert "few_test_queries" not in found(make_dataset("d", [fold, fold]))


def test_folds_that_share_parts_are_reported_once():
    fold = dataset(changed(features=put(2, lambda x, y: 3.5))).folds[0]
    folds = [Fold(f"Fold{k}", fold.train, fold.validation, fold.test) for k in range(1, 6)]
    (finding,) = found(make_dataset("d", folds)).values()
    assert finding.where == "Fold1 train; also Fold2 train, Fold3 train, Fold4 train and 1 more"


def test_problems_come_first():
    def spoil(x, y):
        x[:, 2], x[:, 4] = 3.5, y
        return x

    findings = summarize(dataset(changed(features=spoil))).findings
    assert [f.code for f in findings] == ["label_leak", "constant_features"]


def test_the_same_data_give_the_same_summary():
    data = synthetic(num_queries=60)
    assert summarize(data) == summarize(data)
