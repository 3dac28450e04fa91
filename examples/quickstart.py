"""Matrix factorisation: the program of downhill's README, on downhill_rms.

It finds u and v whose product is close to a given matrix, with a penalty that keeps u sparse and
v small, in three ways: one call, a loop of one's own, and a function of one's own.

    python examples/quickstart.py
"""

import numpy as np
import pytensor
import pytensor.tensor as pt

import downhill_rms

A, B, K = 20, 5, 3


def make_problem(rng):
    """The parameters, the input, the reconstruction error and the loss."""
    u = pytensor.shared(rng.standard_normal((A, K)), name="u")
    v = pytensor.shared(rng.standard_normal((K, B)), name="v")
    z = pt.matrix("z")
    error = pt.sqr(z - u @ v)
    loss = error.mean() + abs(u).mean() + (v * v).mean()
    return u, v, z, error, loss


def main():
    """Minimise the same loss in three ways."""
    rng = np.random.default_rng(0)
    y = rng.standard_normal((A, K)) @ rng.standard_normal((K, B)) + rng.standard_normal((A, B))

    # One call. All rows make one minibatch, since each belongs to its row of u.
    u, v, z, error, loss = make_problem(rng)
    monitors = {"error": error.mean(), "|u|<0.1": (abs(u) < 0.1).mean()}
    trainer = downhill_rms.Trainer(loss, monitors=monitors, monitor_gradients=True)
    options = {"batch_size": A, "max_gradient_norm": 1, "learning_rate": 0.1, "patience": 0}
    print("before  ", {k: round(x, 3) for k, x in trainer.evaluate([y]).items()})
    train, _ = trainer.minimize([y], **options)
    print("after   ", {k: round(x, 3) for k, x in train.items()})

    # A loop of one's own goes on where the call stopped, with nothing to compile.
    for epoch, (train, _) in enumerate(trainer.iterate([y], learning_rate=0.01, max_epochs=50)):
        if epoch % 10 == 9:
            print(f"epoch {trainer.epoch_count:3d} loss {train['loss']:.3f}")

    # A function of one's own applies the same updates.
    updates = trainer.get_updates(learning_rate=0.001)
    step = pytensor.function([z], loss, updates=updates)
    losses = [float(step(y)) for _ in range(100)]
    print(f"own function: loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    print("v =", v.get_value().round(2), sep="\n")


if __name__ == "__main__":
    main()
