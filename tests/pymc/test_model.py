"""A model as a loss: its scale, its Jacobians, and what cannot be told from a minibatch."""

import numpy as np
import pytensor
import pytest

pytest.importorskip("pymc", reason="PyMC is not installed: it needs Python 3.12")

import pymc as pm
from scipy import stats

from downhill_rms import Dataset
from downhill_rms.pymc import advi_problem, map_problem
from tests.pymc import models

BATCH = 100
FLOAT32 = 1e-8  # PyMC takes the logarithm of a sigma that is a Python number in float32


def losses(problem, batches):
    """The loss of each minibatch at the problem's parameters."""
    with pytensor.config.change_flags(cxx="", mode="FAST_COMPILE"):
        function = pytensor.function(problem.inputs, problem.loss)
        return [function(*batch) for batch in batches]


def test_the_mean_over_an_epoch_is_the_whole_posterior_with_a_shorter_last_minibatch():
    y = models.normal_data(1003)
    problem = map_problem(models.normal_model(y), {"y": y})
    batches = [[y[first : first + BATCH]] for first in range(0, len(y), BATCH)]
    sizes = [len(batch) for (batch,) in batches]
    assert sizes[-1] == 3
    expected = -stats.norm.logpdf(y, 0.0, models.SIGMA).sum() - stats.norm.logpdf(0.0, 0, 10)
    found = np.average(losses(problem, batches), weights=sizes)
    np.testing.assert_allclose(found, expected, rtol=FLOAT32)


def test_a_total_size_of_the_models_own_scales_alike():
    y = models.normal_data()
    own = map_problem(models.normal_model(y, total_size=len(y)), {"y": y})
    ours = map_problem(models.normal_model(y), {"y": y})
    for size in (BATCH, 3):
        np.testing.assert_allclose(
            losses(own, [[y[:size]]]), losses(ours, [[y[:size]]]), rtol=1e-12
        )


def test_without_data_the_loss_is_pymcs_own():
    model = models.eight_schools()
    problem = map_problem(model)
    expected = -model.compile_logp(jacobian=False, mode="FAST_COMPILE")(model.initial_point())
    np.testing.assert_allclose(losses(problem, [[]]), [expected], rtol=1e-12)


def test_the_monitor_is_the_mean_log_likelihood_of_one_sample():
    y = models.normal_data(50)
    for total_size in (None, 50):
        model = models.normal_model(y, total_size)
        problem = map_problem(model, {"y": y})
        function = pytensor.function(problem.inputs, problem.monitors["log_likelihood"])
        expected = stats.norm.logpdf(y[:7], 0.0, models.SIGMA).mean()
        np.testing.assert_allclose(function(y[:7]), expected, rtol=FLOAT32)


def discrete():
    with pm.Model() as model:
        pm.Poisson("count", 3.0)
    return model, None


def empty():
    with pm.Model() as model:
        pm.Normal("observed", 0.0, 1.0, observed=np.zeros(3))
    return model, None


def prior_on_data():
    with pm.Model() as model:
        x = pm.Data("x", np.ones(5))
        pm.Normal("scale", x.mean(), 1.0)
    return model, {"x": np.ones(5)}


def potential_on_data():
    with pm.Model() as model:
        x = pm.Data("x", np.ones(5))
        pm.Potential("penalty", -((pm.Normal("w", 0.0, 1.0) - x) ** 2).sum())
    return model, {"x": np.ones(5)}


def values_not_fed():
    with pm.Model() as model:
        x = pm.Data("x", np.ones(5))
        pm.Normal("observed", pm.Normal("w", 0.0, 1.0) * x, 1.0, observed=np.zeros(5))
    return model, {"x": np.ones(5)}


def unknown_name():
    return models.normal_model(np.zeros(5)), {"z": np.zeros(5)}


def of_unknown_length():
    return models.normal_model(np.zeros(5)), Dataset(lambda: {"y": np.zeros(5)})


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (lambda: ("model", None), TypeError, "it is a pymc.Model"),
        (discrete, ValueError, "count are discrete"),
        (empty, ValueError, "no free variable"),
        (prior_on_data, ValueError, "scale depends on x"),
        (potential_on_data, ValueError, "penalty depends on x"),
        (values_not_fed, ValueError, "its observed values are not fed"),
        (unknown_name, ValueError, "no pm.Data container for; it has y"),
        (of_unknown_length, TypeError, "by the names of pm.Data containers"),
        (lambda: (models.normal_model(np.zeros(5)), [np.zeros(5)]), TypeError, "by the names"),
    ],
)
def test_what_cannot_be_fitted_is_refused_before_anything_is_compiled(make, kind, text):
    model, train = make()
    with pytest.raises(kind, match=text):
        advi_problem(model, train)


def test_a_total_size_that_is_another_than_the_data_have_is_doubted():
    y = models.normal_data(50)
    with pytest.warns(UserWarning, match="total_size=60 and train has 50"):
        map_problem(models.normal_model(y, total_size=60), {"y": y})
