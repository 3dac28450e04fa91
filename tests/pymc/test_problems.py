"""Fitted models, beside what is known of them by other means."""

import inspect

import numpy as np
import pytest

pytest.importorskip("pymc", reason="PyMC is not installed: it needs Python 3.12")

import pymc as pm
import pytensor
import pytensor.tensor as pt

import downhill_rms
from downhill_rms import Checkpoint
from downhill_rms.pymc import advi_problem, map_problem
from tests.pymc import models

FAST = "FAST_COMPILE"


def fit(problem, **options):
    return problem.minimize(FAST, **{"progress": False, "validate_every": 1000, **options})


def quick(updates):
    """Options of a problem whose run is short."""
    return {"updates": updates, "learning_rate": 0.05}


def posterior(problem, draws=20_000):
    return problem.to_inference_data(draws, seed=0)["posterior"]


def assert_near(found, mean, std, means_within, stds_within):
    """Draws' means within so many standard deviations, and their spread within a part."""
    found = np.asarray(found).reshape(-1, *np.shape(mean))
    assert np.all(np.abs(found.mean(axis=0) - mean) < means_within * std)
    np.testing.assert_allclose(found.std(axis=0), std, rtol=stds_within)


def mode_by_pymc(model):
    """PyMC 6.4 warns unless it is told what to return; 6.3 returns a dict and takes no mode."""
    if "return_inferencedata" not in inspect.signature(pm.find_MAP).parameters:
        return pm.find_MAP(model=model, progressbar=False)
    options = {"progressbar": False, "jitter": False, "return_inferencedata": True}
    found = pm.find_MAP(model=model, compile_kwargs={"mode": FAST}, **options)["posterior"]
    return {name: values.values[0, 0] for name, values in found.items()}


def test_the_mode_is_that_of_find_map():
    data = models.logistic_data(300, 4)
    model = models.logistic_model(data)
    expected = mode_by_pymc(model)
    problem = map_problem(model, **quick(3000))
    fit(problem)
    found = problem.point()
    for name in ("weights", "bias"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5)


def test_the_mode_of_a_scale_is_that_of_the_models_own_density():
    """A transformed variable: with the Jacobian the mode would lie elsewhere."""
    data = models.hierarchy_data()
    with pm.Model() as model:
        sigma = pm.HalfNormal("sigma", 2.0)
        pm.Normal("observed", 2.0, sigma, observed=data["y"][:5])
    expected = mode_by_pymc(model)
    problem = map_problem(model, **quick(3000))
    fit(problem)
    np.testing.assert_allclose(problem.point()["sigma"], expected["sigma"], atol=1e-5)


@pytest.mark.parametrize("family", ["mean_field", "full_rank"])
def test_the_conjugate_normal_has_its_exact_posterior(family):
    y = models.normal_data()
    problem = advi_problem(
        models.normal_model(y), {"y": y}, family=family, batch_size=BATCH, **quick(4000), seed=0
    )
    fit(problem, seed=0)
    mean, std = models.normal_posterior(y)
    assert abs(float(problem.mean.get_value()[0]) - mean) < 0.1 * std
    np.testing.assert_allclose(problem.covariance() ** 0.5, std, rtol=0.1)
    assert_near(posterior(problem)["mu"], mean, std, 0.1, 0.1)


BATCH = 100


@pytest.fixture(scope="module")
def logistic():
    data = models.logistic_data(2000, 5)
    return data, *models.logistic_laplace(data)


def test_full_rank_finds_the_covariance_of_a_logistic_regression(logistic):
    data, mean, covariance = logistic
    problem = advi_problem(
        models.logistic_model(data),
        data,
        family="full_rank",
        batch_size=BATCH,
        **quick(8000),
        draws=4,
        seed=1,
    )
    fit(problem, seed=0)
    std = np.sqrt(np.diag(covariance))
    assert np.all(np.abs(problem.mean.get_value() - mean) < 0.15 * std)
    found = problem.covariance()
    np.testing.assert_allclose(np.sqrt(np.diag(found)), std, rtol=0.1)
    np.testing.assert_allclose(
        found / np.outer(std, std), covariance / np.outer(std, std), atol=0.1
    )


def test_a_mean_field_finds_the_conditional_spread_of_a_logistic_regression(logistic):
    """The best independent normal has the diagonal of the precision."""
    data, mean, covariance = logistic
    problem = advi_problem(
        models.logistic_model(data), data, batch_size=BATCH, **quick(6000), draws=4, seed=1
    )
    fit(problem, seed=0)
    std = np.diag(np.linalg.inv(covariance)) ** -0.5
    assert np.all(np.abs(problem.mean.get_value() - mean) < 0.15 * std)
    np.testing.assert_allclose(np.exp(problem.log_std.get_value()), std, rtol=0.1)


def test_pymcs_own_minibatches_advance_by_themselves(logistic):
    data, mean, covariance = logistic
    problem = advi_problem(models.with_minibatch(data, BATCH), **quick(4000), seed=1)
    trainer = fit(problem, validate_every=10**6)
    assert len(trainer.steps.generators) == 2
    std = np.diag(np.linalg.inv(covariance)) ** -0.5
    assert np.all(np.abs(problem.mean.get_value() - mean) < 0.6 * std)


@pytest.mark.slow
def test_eight_schools_are_as_pm_fit_has_them():
    model = models.eight_schools()
    options = {"method": "advi", "random_seed": 1, "progressbar": False}
    approximation = pm.fit(
        20_000, model=model, obj_optimizer=pm.adam(learning_rate=0.01), **options
    )
    reference = approximation.sample(4000, random_seed=1)["posterior"]
    problem = advi_problem(model, **quick(8000), draws=4, seed=2)
    fit(problem, validate_every=10**6)
    found = posterior(problem, 4000)
    for name in ("mu", "theta"):
        expected = reference[name].values.reshape(4000, -1)
        values = found[name].values.reshape(4000, -1)
        std = expected.std(axis=0)
        assert np.all(np.abs(values.mean(axis=0) - expected.mean(axis=0)) < 0.25 * std)
        np.testing.assert_allclose(values.std(axis=0), std, rtol=0.25)


def test_a_hierarchy_by_minibatch():
    data = models.hierarchy_data()
    problem = advi_problem(
        models.hierarchical_model(data), data, batch_size=64, **quick(6000), seed=0
    )
    fit(problem, seed=0)
    found = posterior(problem, 4000)
    means = [data["y"][data["group"] == group].mean() for group in range(6)]
    np.testing.assert_allclose(found["level"].mean(("chain", "draw")), means, atol=0.15)
    np.testing.assert_allclose(found["sigma"].mean(), 1.0, atol=0.15)
    assert found["level"].dims == ("chain", "draw", "group_name")


def test_a_mixture_by_minibatch():
    y = models.mixture_data()
    problem = map_problem(models.mixture_model(y), {"y": y}, batch_size=64, **quick(4000))
    fit(problem, seed=0, validate_every=50)
    found = problem.point()
    np.testing.assert_allclose(found["means"], [-2.0, 1.0], atol=0.2)
    np.testing.assert_allclose(found["weights"], [0.3, 0.7], atol=0.05)
    np.testing.assert_allclose(found["sigmas"], [0.5, 0.8], atol=0.15)


def test_draws_are_on_the_models_scale_and_serve_predictions():
    y = models.normal_data(200)
    model = models.normal_model(y)
    problem = advi_problem(model, {"y": y}, **quick(500), seed=0)
    fit(problem, seed=0)
    data = problem.to_inference_data(50, seed=1)
    assert data["posterior"]["mu"].shape == (1, 50)
    predicted = pm.sample_posterior_predictive(
        data, model=model, progressbar=False, compile_kwargs={"mode": FAST}
    )
    assert predicted["posterior_predictive"]["observed"].shape == (1, 50, 200)


def test_deterministics_of_fed_data_are_left_out_and_constant_ones_repeated():
    with pm.Model() as model:
        x, y = pm.Data("x", np.arange(4.0)), pm.Data("y", np.zeros(4))
        w = pm.Normal("w", 0.0, 1.0, shape=2)
        pm.Deterministic("fed", x * w[0])
        pm.Deterministic("own", w.sum())
        pm.Deterministic("constant", pt.arange(3) * 2.0)
        pm.Normal("observed", x * w[0] + w[1], 1.0, observed=y)
    problem = advi_problem(model, {"x": np.arange(4.0), "y": np.zeros(4)})
    found = problem.to_inference_data(5, seed=0)["posterior"]
    assert {*found} == {"w", "own", "constant"}
    assert found["w"].shape == (1, 5, 2)
    np.testing.assert_allclose(found["own"], found["w"].sum("w_dim_0"), rtol=1e-12)
    np.testing.assert_array_equal(found["constant"], np.tile([0.0, 2.0, 4.0], (1, 5, 1)))


def test_held_out_samples_are_judged_by_their_log_likelihood():
    y = models.normal_data(400)
    problem = advi_problem(
        models.normal_model(y[:300]), {"y": y[:300]}, {"y": y[300:]}, **quick(2000), seed=0
    )
    trainer = fit(problem, seed=0, validate_every=50)
    mean, std = models.normal_posterior(y[:300])
    variance = models.SIGMA**2
    squares = (y[300:] - mean) ** 2 + std**2  # the expected square over the posterior
    expected = np.mean(-0.5 * np.log(2 * np.pi * variance) - squares / 2 / variance)
    found = trainer.history[-1].valid["log_likelihood"]
    np.testing.assert_allclose(found, expected, atol=0.01)


def test_a_run_that_is_cut_off_goes_on_bit_for_bit(tmp_path):
    y = models.normal_data(200)

    def run(**options):
        problem = advi_problem(models.normal_model(y), {"y": y}, **quick(400), seed=4)
        fit(problem, seed=5, validate_every=10, **options)
        return problem.mean.get_value(), problem.log_std.get_value()

    whole = run()
    run(checkpoint=Checkpoint(tmp_path, every_updates=7), max_updates=123)
    again = run(checkpoint=Checkpoint(tmp_path, every_updates=7), resume=True)
    np.testing.assert_array_equal(again, whole)


def test_a_finished_run_goes_into_another_problem_of_the_model(tmp_path):
    y = models.normal_data(200)
    first, second = (advi_problem(models.normal_model(y), {"y": y}, **quick(300)) for _ in "ab")
    fit(first).save_parameters(tmp_path / "parameters.npz")
    second.trainer(FAST).load_parameters(tmp_path / "parameters.npz")
    assert second.point() == first.point()
    assert second.covariance() == first.covariance()


def test_single_precision_is_fitted_in_single_precision():
    y = models.normal_data(400).astype("float32")
    with pytensor.config.change_flags(floatX="float32"):
        problem = advi_problem(models.normal_model(y), {"y": y}, **quick(3000), seed=0)
        assert {problem.loss.dtype, problem.mean.dtype} == {"float32"}
        fit(problem, seed=0)
    mean, std = models.normal_posterior(y.astype("float64"))
    assert abs(float(problem.mean.get_value()[0]) - mean) < 0.1 * std
    np.testing.assert_allclose(problem.covariance() ** 0.5, std, rtol=0.1)


def test_pm_fit_takes_the_rule():
    """The whole rule serves PyMC's own loop."""
    y = models.normal_data(200)

    def optimizer(gradients, params):
        return dict(downhill_rms.updates(params, gradients, learning_rate=0.01, decay=0.99))

    with models.normal_model(y):
        approximation = pm.fit(
            4000, method="advi", obj_optimizer=optimizer, random_seed=1, progressbar=False
        )
    mean, std = models.normal_posterior(y)
    assert abs(float(approximation.mean.eval()[0]) - mean) < std


@pytest.mark.parametrize(
    "bad", [{"family": "normal"}, {"draws": 0}, {"updates": 0}, {"learning_rate": -1.0}], ids=str
)
def test_bad_options_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        advi_problem(models.normal_model(np.zeros(5)), **bad)


def test_the_trainer_of_pymc_extras_takes_the_rule():
    pytest.importorskip("pymc_extras", reason="pymc-extras is not installed")
    from pymc_extras.inference.advi.optimizers import GradientTransformation
    from pymc_extras.inference.advi.training import Trainer

    def compiled(gradients, params):
        updates = dict(downhill_rms.updates(params, gradients, learning_rate=0.01, decay=0.99))
        return [updates.pop(param) - param for param in params], updates

    y = models.normal_data(200)
    with models.normal_model(y):
        transformation = GradientTransformation(dict, None, pytensor=compiled)
        trainer = Trainer(optimizer=transformation, random_seed=1)
        trainer.fit(4000, random_seed=1)
    mean, std = models.normal_posterior(y)
    assert abs(float(trainer.state.params["mu_loc"]) - mean) < std
