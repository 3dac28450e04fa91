"""Data, switches and factors are not trained without a word; parameters are."""

import logging
import warnings

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from downhill_rms import Dataset, Trainer
from downhill_rms.command.check import check
from downhill_rms.problem import Problem
from downhill_rms.rule import Hyperparameters

X, Y, INDEX = pt.matrix("x"), pt.vector("y"), pt.lvector("index")
RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(40, 3))
LABELS = ROWS @ [1.0, -2.0, 0.5]


def shared(value, name):
    return pytensor.shared(np.asarray(value), name=name)


def weights():
    return shared(np.zeros(3), "w"), shared(0.0, "b")


def error(inputs=X):
    w, b = weights()
    return pt.sqr(inputs @ w + b - Y).mean(), w


def penalised():
    loss, w = error()
    return loss + shared(0.1, "l2") * pt.sqr(w).sum()


def penalised_inside():
    loss, w = error()
    return loss + (0.5 * shared(0.1, "l2") * pt.sqr(w)).mean()


def switched():
    _, noise = pt.random.shared_rng(seed=1).normal(size=X.shape)
    return error(pt.switch(shared(1.0, "use_noise"), X * noise, X))[0]


SUSPECTS = {
    "a factor": (penalised, r"'l2' of shape \(\) is trained and multiplies a term"),
    "a factor inside a mean": (penalised_inside, "'l2' .* multiplies a term"),
    "a switch": (switched, r"'use_noise' .* gradient that is zero .* params=\[w, b\]"),
}


@pytest.mark.parametrize(("make", "message"), SUSPECTS.values(), ids=SUSPECTS)
def test_suspects_of_the_graph_are_warned_of_at_the_users_line(make, message, mode):
    loss = make()
    with pytest.warns(UserWarning, match=message) as caught:
        Trainer(loss, inputs=[X, Y], mode=mode)
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize(("make", "message"), SUSPECTS.values(), ids=SUSPECTS)
def test_who_says_what_is_trained_is_not_warned(make, message):
    loss = make()
    with pytest.warns(UserWarning, match=message):
        params = Trainer(loss).graph.params
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Trainer(loss, params=params)


def precision():
    """The precision of a normal distribution multiplies a term, and is rightly trained."""
    mu, tau = shared(0.0, "mu"), shared(1.0, "tau")
    return (0.5 * tau * pt.sqr(Y - mu)).mean() - 0.5 * pt.log(tau)


def uncertainty():
    """A. Kendall, Y. Gal, R. Cipolla, CVPR 2018: the weight of a task is learnt."""
    s = shared(0.0, "s")
    return pt.exp(-s) * error()[0] + s


def score():
    """The slope of a bias is the same whatever the other parameters are."""
    w, b = weights()
    return (X @ w + b).mean()


@pytest.mark.parametrize("make", [precision, uncertainty, score, lambda: error()[0]])
def test_scalars_that_are_parameters_do_not_warn(make):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Trainer(make())


def data_by_index():
    """As Theano's tutorials keep data on the device."""
    w, b = weights()
    rows, labels = shared(ROWS, "rows"), shared(LABELS, "labels")
    return pt.sqr(rows[INDEX] @ w + b - labels[INDEX]).mean()


def test_data_in_shared_variables_are_warned_of(mode):
    trainer = Trainer(data_by_index(), mode=mode)
    with pytest.warns(UserWarning, match="as many rows as the training data") as caught:
        trainer.minimize(np.arange(40), max_epochs=1)
    trainer.minimize(np.arange(40), max_epochs=1)  # once
    assert [str(w.message).partition(" of ")[0] for w in caught] == ["'rows'", "'labels'"]
    assert {w.filename for w in caught} == {__file__}
    assert "'rows' of shape (40, 3)" in str(caught[0].message)


def test_data_in_shared_variables_beside_data_are_warned_of(mode):
    w, b = weights()
    trainer = Trainer(pt.sqr(shared(ROWS, "rows") @ w + b - Y).mean(), mode=mode)
    with pytest.warns(UserWarning, match=r"'rows' .* params=\[w, b\]"):
        trainer.minimize([LABELS], batch_size=0, max_epochs=1)


def test_a_parameter_for_each_sample_does_not_warn(mode):
    z, v = pt.matrix("z"), shared(np.ones((2, 3)), "v")
    u = shared(np.ones((40, 2)), "u")
    trainer = Trainer(pt.sqr(z - u @ v).mean() + 0.1 * pt.sqr(u).mean(), mode=mode)
    trainer.minimize([ROWS], batch_size=0, max_epochs=1)


def test_as_many_features_as_samples_do_not_warn(mode):
    w = shared(np.zeros(6), "w")
    Trainer(pt.sqr(X @ w - Y).mean(), mode=mode).minimize([np.eye(6), np.ones(6)], max_epochs=1)


def test_ready_batches_tell_no_rows(mode):
    trainer = Trainer(error()[0], inputs=[X, Y], mode=mode)
    trainer.minimize(Dataset([[ROWS[:3], LABELS[:3]]]), max_epochs=1)


def test_data_of_pymc_are_warned_of():
    pm = pytest.importorskip("pymc")
    with pm.Model():
        data = pm.Data("observed", LABELS)
    w, _ = weights()
    with pytest.warns(UserWarning, match=r"'observed' of shape \(40,\) .* container of PyMC"):
        Trainer(pt.sqr(w.sum() - data).mean())


def test_one_line_says_what_is_trained_and_fed(mode, caplog):
    loss, _ = error()
    line = "parameters w (3,), b (); inputs x, y"
    trainer = Trainer(loss, inputs=[X, Y], mode=mode)
    assert repr(trainer) == f"Trainer({line})"
    with caplog.at_level(logging.INFO, "downhill_rms"):
        trainer.minimize([ROWS, LABELS], max_epochs=2)
    assert [record.getMessage() for record in caplog.records].count(line) == 1
    problem = Problem(loss=loss, inputs=[X, Y], train=[ROWS, LABELS])
    report = check(problem, Hyperparameters())
    assert report.sections["what is trained and fed"] == [line]


def test_a_check_warns_of_the_same():
    problem = Problem(loss=penalised(), inputs=[X, Y], train=[ROWS, LABELS])
    assert any("'l2'" in text for text in check(problem, Hyperparameters()).problems)
    problem = Problem(loss=data_by_index(), train=[np.arange(40)])
    assert any("'rows'" in text for text in check(problem, Hyperparameters()).problems)


def exchangeable():
    a, b = pt.vector("a"), pt.vector("b")
    return pt.sqr(b - shared(2.0, "w") * a).mean(), a, b


PAIR = [np.ones(4), np.full(4, 3.0)]


CALLS = {
    "arrays": lambda trainer: trainer.minimize(PAIR, max_epochs=1),
    "batches": lambda trainer: trainer.minimize([PAIR, PAIR], max_epochs=1),
    "evaluate": lambda trainer: trainer.evaluate(PAIR),
    "step": lambda trainer: trainer.step(PAIR),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_data_by_position_for_inputs_that_could_be_exchanged_warn_once(call, mode):
    """b - w * a finds b first: [A, B] would be fed the wrong way round."""
    trainer = Trainer(exchangeable()[0], mode=mode)
    message = r"'b' .* and 'a' .* could be exchanged\. .* first use in the graph: b, a\. .* inputs="
    with pytest.warns(UserWarning, match=message) as caught:
        call(trainer)
    for again in CALLS.values():
        again(trainer)
    assert [warning.filename for warning in caught] == [__file__]


def test_who_says_the_order_is_not_warned(mode):
    loss, a, b = exchangeable()
    trainer = Trainer(loss, inputs=[a, b], mode=mode)
    assert trainer.evaluate(PAIR)["loss"] == 1.0
    named = dict(zip("ab", PAIR, strict=True))
    assert Trainer(loss, mode=mode).evaluate(named)["loss"] == 1.0


def test_inputs_that_cannot_be_exchanged_do_not_warn(mode):
    Trainer(error()[0], mode=mode).evaluate([ROWS, LABELS])
    count = pt.lvector("count")
    loss = pt.sqr(count * Y - shared(1.0, "w")).mean()
    Trainer(loss, mode=mode).evaluate([np.arange(3), np.ones(3)])


def test_a_check_warns_of_the_order():
    report = check(Problem(loss=exchangeable()[0], train=PAIR), Hyperparameters())
    assert any("could be exchanged" in text for text in report.problems)
