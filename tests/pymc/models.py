"""Models, their data, and what is known of their posteriors by other means."""

import numpy as np
import pymc as pm
import pytensor.tensor as pt
from scipy.optimize import minimize

SIGMA = 2.0  # of an observation of the normal model


def normal_data(samples=1003):
    return np.random.default_rng(3).normal(1.5, SIGMA, samples)


def normal_model(y, total_size=None):
    """A mean with a normal prior, of which the posterior is known."""
    with pm.Model() as model:
        data = pm.Data("y", y)
        mu = pm.Normal("mu", 0.0, 10.0)
        pm.Normal("observed", mu, SIGMA, observed=data, total_size=total_size)
    return model


def normal_posterior(y):
    """Mean and standard deviation of the conjugate normal's posterior."""
    precision = 1 / 10**2 + len(y) / SIGMA**2
    return y.sum() / SIGMA**2 / precision, precision**-0.5


def logistic_data(samples, predictors, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples, predictors))
    weights = rng.normal(size=predictors) / 2
    y = rng.random(samples) < 1 / (1 + np.exp(-(x @ weights - 0.5)))
    return {"x": x, "y": y.astype("int64")}


def logistic_model(data):
    """Logistic regression with normal priors."""
    with pm.Model(coords={"predictor": np.arange(data["x"].shape[1])}) as model:
        x, y = pm.Data("x", data["x"]), pm.Data("y", data["y"])
        weights = pm.Normal("weights", 0.0, 1.0, dims="predictor")
        bias = pm.Normal("bias", 0.0, 1.0)
        pm.Bernoulli("observed", logit_p=x @ weights + bias, observed=y)
    return model


def logistic_laplace(data):
    """Mean and covariance of the posterior's Laplace approximation, in NumPy: weights, bias."""
    x = np.column_stack([data["x"], np.ones(len(data["x"]))])

    def energy(z):
        logits = x @ z
        gradient = x.T @ (1 / (1 + np.exp(-logits)) - data["y"]) + z
        return np.logaddexp(0, logits).sum() - data["y"] @ logits + z @ z / 2, gradient

    mode = minimize(energy, np.zeros(x.shape[1]), jac=True, tol=1e-12).x
    p = 1 / (1 + np.exp(-(x @ mode)))
    return mode, np.linalg.inv((x.T * (p * (1 - p))) @ x + np.eye(x.shape[1]))


def eight_schools():
    """Rubin's eight schools, written without the funnel."""
    effects = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    errors = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    with pm.Model(coords={"school": list("ABCDEFGH")}) as model:
        mu = pm.Normal("mu", 0.0, 5.0)
        tau = pm.HalfCauchy("tau", 5.0)
        raw = pm.Normal("raw", 0.0, 1.0, dims="school")
        theta = pm.Deterministic("theta", mu + tau * raw, dims="school")
        pm.Normal("observed", theta, errors, observed=effects)
    return model


def hierarchy_data(groups=6, each=50):
    rng = np.random.default_rng(5)
    group = np.repeat(np.arange(groups), each)
    return {"group": group, "y": rng.normal(rng.normal(2.0, 1.5, groups)[group], 1.0)}


def hierarchical_model(data):
    """Groups whose means are drawn from a population."""
    with pm.Model(coords={"group_name": np.arange(data["group"].max() + 1)}) as model:
        group, y = pm.Data("group", data["group"]), pm.Data("y", data["y"])
        mu, tau = pm.Normal("mu", 0.0, 5.0), pm.HalfNormal("tau", 3.0)
        raw = pm.Normal("raw", 0.0, 1.0, dims="group_name")
        level = pm.Deterministic("level", mu + tau * raw, dims="group_name")
        sigma = pm.HalfNormal("sigma", 2.0)
        pm.Normal("observed", level[group], sigma, observed=y)
    return model


def mixture_data(samples=600):
    rng = np.random.default_rng(7)
    first = rng.random(samples) < 0.3
    return np.where(first, rng.normal(-2.0, 0.5, samples), rng.normal(1.0, 0.8, samples))


def mixture_model(y):
    """Two normals in order, with the component summed over."""
    with pm.Model() as model:
        data = pm.Data("y", y)
        weights = pm.Dirichlet("weights", np.ones(2))
        means = pm.Normal(
            "means",
            0.0,
            3.0,
            shape=2,
            transform=pm.distributions.transforms.ordered,
            initval=np.array([-1.0, 1.0]),
        )
        sigmas = pm.HalfNormal("sigmas", 1.0, shape=2)
        pm.NormalMixture("observed", weights, means, sigmas, observed=data)
    return model


def with_minibatch(data, batch_size):
    """Logistic regression fed by PyMC's own minibatches."""
    x, y = pm.Minibatch(data["x"], data["y"].astype("int32"), batch_size=batch_size)
    with pm.Model() as model:
        weights = pm.Normal("weights", 0.0, 1.0, shape=data["x"].shape[1])
        bias = pm.Normal("bias", 0.0, 1.0)
        logits = pt.dot(x, weights) + bias
        pm.Bernoulli("observed", logit_p=logits, observed=y, total_size=len(data["y"]))
    return model
