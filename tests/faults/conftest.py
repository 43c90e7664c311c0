"""A tiny run that the tests of faults disturb."""

import numpy as np
import pytest

ARGUMENTS = [
    "--budget=30", "--proposals=12", "--proposer=evolution", "--model=linear", "--hall_of_fame=4",
    "--fresh_seeds=1", "--finalists=2", "--proxy_rung_steps=4", "--proxy_rungs=1,1",
    "--max_buckets=1", "--test_seeds=2", "--test_learning_rates=0.003,0.03", "--test_block_steps=4",
    "--test_confirmation_seeds=2", "--test_max_steps=24", "--hand_designed=mse,softmax",
]  # fmt: skip


def write_letor(path, first, count):
    """Queries number `first` on, whose label is the sign of the first feature."""
    rng = np.random.default_rng(first)
    lines = []
    for query in range(first, first + count):
        for document in range(rng.integers(4, 9)):
            x = rng.normal(size=3)
            label = 1 if document == 0 else int(x[0] > 0)
            lines.append(f"{label} qid:{query} 1:{x[0]:.4f} 2:{x[1]:.4f} 3:{x[2]:.4f}\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines))


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """The arguments of a run of a few seconds on two folds; all of them share compiled programs."""
    base = tmp_path_factory.mktemp("tiny")
    for k in (1, 2):
        for part, first, count in (("train", 0, 30), ("vali", 30, 15), ("test", 30 + 15 * k, 15)):
            write_letor(base / "data" / f"Fold{k}" / f"{part}.txt", first, count)
    return ["run", *ARGUMENTS, f"--data={base / 'data'}", f"--compilation_cache={base / 'cache'}"]
