"""torch.optim.RMSprop and this library, side by side on a linear model with ten inputs.

python examples/torch_parity.py     (where torch is installed)
"""

import numpy as np
import pytensor
import pytensor.tensor as pt
import torch

from downhill_rms import Trainer, preset

OPTIONS = {"lr": 0.001, "alpha": 0.99, "eps": 1e-8, "momentum": 0}


def main():
    """Train both for 50 updates and print the largest relative difference of their weights."""
    rng = np.random.default_rng(0)
    inputs, labels = rng.standard_normal((64, 10)), rng.standard_normal((64, 1))

    model = torch.nn.Linear(10, 1).double()
    weight = model.weight.detach().numpy().T.copy()
    bias = model.bias.detach().numpy().copy()
    optimizer = torch.optim.RMSprop(model.parameters(), **OPTIONS)

    x, y = pt.matrix("x"), pt.matrix("y")
    w, b = pytensor.shared(weight, name="w"), pytensor.shared(bias, name="b")
    trainer = Trainer(pt.sqr(x @ w + b - y).mean(), inputs=[x, y])

    for t in range(1, 51):
        optimizer.zero_grad()
        predictions = model(torch.from_numpy(inputs))
        torch.nn.functional.mse_loss(predictions, torch.from_numpy(labels)).backward()
        optimizer.step()
        trainer.step([inputs, labels], **preset("torch", **OPTIONS))
        if t % 10 == 0:
            theirs = model.weight.detach().numpy().T
            difference = np.abs(w.get_value() / theirs - 1).max()
            print(f"update {t:2d}: largest relative difference {difference:.1e}")


if __name__ == "__main__":
    main()
