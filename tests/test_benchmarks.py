"""What the benchmarks make of figures, and that this library computes there what it should."""

import numpy as np
import pytest

from tests.benchmarks import contest
from tests.benchmarks.peers import ours
from tests.benchmarks.rungs import DECAY, EPSILON, LEARNING_RATE, Network, Sparse, UpdateAlone
from tests.benchmarks.table import depth_table, table
from tests.oracle import Oracle

RULE = {"learning_rate": LEARNING_RATE, "decay": DECAY, "rms_regularizer": EPSILON}


def entry(figures, checks=None):
    return {"title": "a rung", "unit": "us", "figures": figures, "checks": checks or {}}


def test_ratios_are_pair_by_pair_and_to_the_first():
    found = contest.ratios(entry({"ours": [1.0, 2.0, 4.0], "torch": [3.0, 2.0, 2.0]}))
    assert found == {"torch": [3.0, 1.0, 0.5]}


def test_the_spread_is_quartiles_and_median():
    assert contest.spread([4.0, 1.0, 3.0, 2.0, 5.0]) == (2.0, 3.0, 4.0)
    assert contest.spread([7.0]) == (7.0, 7.0, 7.0)


@pytest.mark.parametrize(
    ("checks", "wrong"),
    [
        ({"ours": 1.0, "torch": 1.01}, False),
        ({"ours": 1.0, "torch": 1.03}, True),
        ({"ours": 1e-6, "torch": 2e-6}, False),  # both are near 0
        ({"ours": 1.0, "sklearn": None}, False),  # computes something else, and says so
        ({"ours": float("nan"), "torch": 1.0}, True),
    ],
)
def test_different_computations_show(checks, wrong):
    assert contest.disagree(checks) is wrong


def test_the_table():
    figures = {"ours:tiered": [1.0, 3.0, 2.0], "optax:scan": [2.0, 6.0, 4.0]}
    assert table({"rungs": {"I first empty": entry(figures)}}) == [
        ["rung", "this library takes", "optax (100 updates a call)"],
        ["I: a rung", "2.00 us (tiered)", "2.00 (2.00 to 2.00)"],
    ]


def test_a_table_has_a_column_for_each_contestant():
    figures = {"ours": [1.0, 2.0, 4.0], "torch": [3.0, 6.0, 12.0]}
    both = figures | {"optax": [1.0, 2.0, 4.0]}
    assert table({"rungs": {"A": entry(figures), "B": entry(both)}}) == [
        ["rung", "this library takes", "PyTorch", "optax"],
        ["A: a rung", "2.00 us", "3.00 (3.00 to 3.00)", None],
        ["B: a rung", "2.00 us", "3.00 (3.00 to 3.00)", "1.00 (1.00 to 1.00)"],
    ]


def test_contestants_of_few_rungs_share_a_column():
    pair = {"ours": [1.0], "torch": [3.0]}
    rungs = dict.fromkeys("AB", entry(pair)) | {"H": entry(pair | {"sklearn": [2.0]})}
    assert table({"rungs": rungs}) == [
        ["rung", "this library takes", "PyTorch", "others"],
        ["A: a rung", "1.00 us", "3.00 (3.00 to 3.00)", ""],
        ["B: a rung", "1.00 us", "3.00 (3.00 to 3.00)", ""],
        ["H: a rung", "1.00 us", "3.00 (3.00 to 3.00)", "scikit-learn 2.00 (2.00 to 2.00)"],
    ]


@pytest.mark.parametrize(
    ("figure", "unit", "shown"),
    [
        (16.61, "us an update", "16.6 us"),
        (501.2, "us an update", "501 us"),
        (10_490.8, "us an update", "10.5 ms"),
        (203_526.7, "us an update", "204 ms"),
        (1.234, "s", "1.23 s"),
        (2525.4, "MB", "2,525 MB"),
    ],
)
def test_figures_have_three_digits(figure, unit, shown):
    found = {"A": entry({"ours": [figure]}) | {"unit": unit}}
    assert table({"rungs": found})[1][1] == shown


def test_this_library_beside_itself_is_told_apart():
    found = {"I first empty": entry({"ours:tiered": [1.0], "ours": [7.5]})}
    assert table({"rungs": found})[0][2] == "this library (compiled first)"


def test_the_table_of_what_compiling_takes():
    ours = {"seconds": 2.0, "processor": 31.4, "gigabytes": 0.52, "update": 1.5}
    optax = {state: ours | {"processor": 7.0, "update": 3.25} for state in ("empty", "warm")}
    found = {
        "deep layers 5": {"ours": {"empty": ours, "warm": ours}, "optax": optax},
        "B": {"ours": {"empty": ours, "warm": ours}},
    }
    title = "64-128-10, batch 32"
    assert depth_table(found)[1:] == [
        ["5 layers", "31 s, 0.5 GB", "2.0 s", "1.50 ms", "", "3.25 ms", "7.0 s"],
        [title, "31 s, 0.5 GB", "2.0 s", "1.50 ms", "", "", ""],
    ]


def test_the_update_alone_follows_the_oracle():
    rung = UpdateAlone("update alone", 2, 30, 5, ("ours",))
    oracle = Oracle(np.zeros((2, 30)), regularize="rms", **RULE)
    for gradients in rung.gradients[:5]:
        oracle.update(list(gradients))
    assert ours.update_alone(rung)(5) == pytest.approx(np.mean(oracle.params), rel=1e-4)


def test_a_regression_follows_the_oracle():
    rung = Network("regression", (3, 1), 20, 10, 4, ("ours",))
    x, y = rung.data()
    oracle = Oracle(rung.parameters(), regularize="rms", **RULE)
    for index in range(4):
        batch = slice(index % 2 * 10, index % 2 * 10 + 10)
        error = x[batch] @ oracle.params[0] + oracle.params[1] - y[batch]
        oracle.update([x[batch].T @ error / 5, 2 * error.mean(axis=0)])
    loss = np.mean((x[:10] @ oracle.params[0] + oracle.params[1] - y[:10]) ** 2)
    assert ours.network(rung)(4) == pytest.approx(loss, rel=1e-5)


def test_sparse_logistic_regression_follows_the_oracle():
    rung = Sparse("sparse", 4, ("ours",), features=40, nonzeros=5, samples=20, batch=10)
    x, y = rung.data()
    oracle = Oracle([np.zeros(40), np.zeros(())], regularize="rms", **RULE)
    for index in range(4):
        batch = slice(index % 2 * 10, index % 2 * 10 + 10)
        score = x[batch] @ oracle.params[0] + oracle.params[1]
        error = (1 / (1 + np.exp(-score)) - y[batch]) / 10
        oracle.update([x[batch].T @ error, error.sum()])
    score = x[:10] @ oracle.params[0] + oracle.params[1]
    loss = np.mean(np.logaddexp(0, score) - y[:10] * score)
    assert ours.sparse(rung)(4) == pytest.approx(loss, rel=1e-5)
