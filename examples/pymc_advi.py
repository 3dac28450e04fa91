"""A posterior by minibatches: PyMC's model of scikit-learn's breast cancer data.

30 measurements of 569 cells tell whether a tumour is malignant. Every fifth is held out.

    python examples/pymc_advi.py
    downhill-rms train examples/pymc_advi.py
"""

import numpy as np
import pymc as pm
from sklearn.datasets import load_breast_cancer

from downhill_rms.pymc import advi_problem


def problem(seed=0, updates=5000):
    """The variational approximation of a logistic regression's posterior."""
    found = load_breast_cancer()
    features = (found.data - found.data.mean(axis=0)) / found.data.std(axis=0)
    data = {"x": features, "y": found.target.astype("int64")}
    held_out = np.arange(len(features)) % 5 == 0
    train = {name: values[~held_out] for name, values in data.items()}
    valid = {name: values[held_out] for name, values in data.items()}

    with pm.Model(coords={"feature": found.feature_names}) as model:
        x, y = pm.Data("x", train["x"]), pm.Data("y", train["y"])
        scale = pm.HalfNormal("scale", 1.0)
        weights = pm.Normal("weights", 0.0, scale, dims="feature")
        bias = pm.Normal("bias", 0.0, 2.0)
        pm.Bernoulli("observed", logit_p=x @ weights + bias, observed=y)

    options = {"batch_size": 64, "updates": updates, "seed": seed}
    return advi_problem(model, train, valid, learning_rate=0.02, **options)


def main():
    """Fit it, and print what was found."""
    task = problem()
    trainer = task.minimize(seed=0)
    print(f"held out: {trainer.history[-1].valid['log_likelihood']:.3f} a sample")

    weights = task.to_inference_data(draws=2000, seed=0)["posterior"]["weights"]
    means, stds = weights.mean(("chain", "draw")), weights.std(("chain", "draw"))
    for name in means.feature.values[np.argsort(-np.abs(means.values / stds.values))][:5]:
        mean, std = (float(values.sel(feature=name)) for values in (means, stds))
        print(f"{name:<24} {mean:6.2f} +- {std:.2f}")


if __name__ == "__main__":
    main()
