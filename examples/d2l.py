"""The three demonstrations of RMSProp in "Dive into Deep Learning", chapter 12.8.

The weights of past gradients, a trace on an anisotropic quadratic, and a linear regression on
NASA's airfoil self-noise data. Their file has six tab-separated columns; without it the
regression runs on scikit-learn's diabetes data.

    python examples/d2l.py [airfoil_self_noise.dat]
"""

import sys

import numpy as np
import pytensor
import pytensor.tensor as pt

from downhill_rms import Dataset, Trainer, preset


def decay_coefficients(gammas=(0.95, 0.9, 0.8, 0.7), steps=40):
    """Weight of the gradient of each of the last ``steps`` updates, for each gamma."""
    age = np.arange(steps)
    return {gamma: (1 - gamma) * gamma**age for gamma in gammas}


def show_decay_coefficients():
    """Print the weights as bars, from the newest gradient back."""
    print("weight of a gradient, by its age in updates")
    for gamma, weights in decay_coefficients().items():
        bars = "".join(" ▁▂▃▄▅▆▇█"[round(8 * w / 0.3)] for w in weights)
        print(f"gamma = {gamma:.2f} |{bars}|")


def trace(steps=20):
    """Follow 0.1 x1^2 + 2 x2^2 from (-5, -2)."""
    x1, x2 = pytensor.shared(-5.0, name="x1"), pytensor.shared(-2.0, name="x2")
    trainer = Trainer(0.1 * x1**2 + 2 * x2**2)
    points = [(-5.0, -2.0)]
    for _ in range(steps):
        trainer.step(**preset("d2l", lr=0.4, gamma=0.9, eps=1e-6))
        points.append((float(x1.get_value()), float(x2.get_value())))
    return points


def load(path=None):
    """Features and target of the regression, standardised."""
    if path is not None:
        data = np.loadtxt(path, delimiter="\t")
    else:
        from sklearn.datasets import load_diabetes

        diabetes = load_diabetes()
        data = np.column_stack([diabetes.data, diabetes.target])
    data = (data - data.mean(axis=0)) / data.std(axis=0)
    return data[:1500, :-1], data[:1500, -1]


def regression(features, target, seed=0):
    """Two epochs of minibatches of 10; returns half the mean squared error."""
    rng = np.random.default_rng(seed)
    x, y = pt.matrix("x"), pt.vector("y")
    w = pytensor.shared(0.01 * rng.standard_normal(features.shape[1]), name="w")
    b = pytensor.shared(0.0, name="b")
    trainer = Trainer(pt.sqr(x @ w + b - y).mean() / 2, inputs=[x, y])
    trainer.minimize(
        Dataset([features, target], batch_size=10, rng=rng),
        max_epochs=2,
        **preset("d2l", lr=0.01, gamma=0.9),
    )
    return trainer.evaluate([features, target])["loss"]


def main():
    """Run all three."""
    show_decay_coefficients()
    x1, x2 = trace()[-1]
    print(f"epoch 20, x1: {x1:.6f}, x2: {round(x2, 6) + 0.0:.6f}")
    path = sys.argv[1] if len(sys.argv) > 1 else None
    print(f"loss: {regression(*load(path)):.3f}, on {path or 'the diabetes data'}")


if __name__ == "__main__":
    main()
