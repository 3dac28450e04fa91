"""PyTorch on the CPU: ``torch.optim.RMSprop``, centered, with foreach as it chooses itself."""

from __future__ import annotations

import torch
from torch import nn

from tests.benchmarks.rungs import DECAY, EPSILON, LEARNING_RATE


def optimiser_of(parameters):
    """The same RMSProp as everyone's."""
    return torch.optim.RMSprop(
        parameters, lr=LEARNING_RATE, alpha=DECAY, eps=EPSILON, centered=True
    )


def prepare(rung):
    """A loop of so many updates."""
    train = network(rung)
    return train, f"torch {torch.__version__}"


def network(rung):
    """A network, an optimiser and a loop over slices of tensors."""
    layers = []
    for rows, columns in zip(rung.sizes, rung.sizes[1:], strict=False):
        layers += [nn.Linear(rows, columns), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), rung.parameters(), strict=True):
            parameter.copy_(torch.from_numpy(value.T.copy()))
    optimiser = optimiser_of(model.parameters())
    x, y = map(torch.from_numpy, rung.data())
    y = y.long() if rung.sizes[-1] > 1 else y
    criterion = nn.CrossEntropyLoss() if rung.sizes[-1] > 1 else nn.MSELoss()

    def train(updates):
        for index in range(updates):
            start = index * rung.batch % rung.samples
            optimiser.zero_grad()
            loss = criterion(model(x[start : start + rung.batch]), y[start : start + rung.batch])
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            return float(criterion(model(x[: rung.batch]), y[: rung.batch]))

    return train
