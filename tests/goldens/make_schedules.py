"""Make the golden learning rates: optax's schedules and torch's plateaus, in float64.

Needs numpy, torch, jax and optax:

    python tests/goldens/make_schedules.py
"""

import importlib.metadata
import json
from pathlib import Path

import numpy as np

UPDATES = 400
HERE = Path(__file__).parent


def optax_schedules():
    """Ours as text, and optax's for the same."""
    import optax

    cosine = optax.cosine_decay_schedule
    warm = optax.linear_schedule(0.001, 0.02, 50)
    return {
        "cosine(0.02, 300)": cosine(0.02, 300),
        "cosine(0.02, 300, end=0.005)": cosine(0.02, 300, alpha=0.25),
        "exponential(0.1, 0.5, 60)": optax.exponential_decay(0.1, 60, 0.5),
        "exponential(0.001, 1.5, updates=100)": optax.exponential_decay(0.001, 100, 1.5),
        "linear_warmup(0.02, 50)": optax.warmup_constant_schedule(0.0, 0.02, 50),
        "linear_warmup(cosine(0.02, 300, 0.001), 50)": optax.warmup_cosine_decay_schedule(
            0.0, 0.02, 50, 350, end_value=0.001
        ),
        "linear_warmup(exponential(0.02, 0.5, 60), 50, start=0.001)": optax.join_schedules(
            [warm, optax.exponential_decay(0.02, 60, 0.5)], [50]
        ),
        "one_cycle(0.05, 300)": optax.cosine_onecycle_schedule(300, 0.05),
        "one_cycle(0.05, 331, 0.25, 10, 100)": optax.cosine_onecycle_schedule(
            331, 0.05, pct_start=0.25, div_factor=10, final_div_factor=100
        ),
        "piecewise([0.1, 0.01, 0.02], [100, 250])": optax.piecewise_constant_schedule(
            0.1, {100: 0.1, 250: 2.0}
        ),
        "piecewise([0.3], [])": optax.constant_schedule(0.3),
    }


PLATEAUS = [
    {},
    {"factor": 0.5, "patience": 2},
    {"factor": 0.5, "patience": 0, "cooldown": 3},
    {"factor": 0.3, "patience": 1, "threshold": 0.05, "min_lr": 0.002},
    {"factor": 0.5, "patience": 1, "mode": "max"},
]


def losses():
    """A loss that falls by steps, with noise: flat for a while, then lower."""
    rng = np.random.default_rng(3)
    return np.repeat(2.0 ** -np.arange(8), 12) * (1 + 0.02 * rng.normal(size=96))


def torch_plateaus():
    """The learning rate after each validation."""
    import torch

    for arguments in PLATEAUS:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, eps=0, **arguments)
        rates = []
        for loss in losses():
            scheduler.step(loss)
            rates.append(optimizer.param_groups[0]["lr"])
        yield rates


def main():
    """Make the file."""
    import jax

    jax.config.update("jax_enable_x64", True)
    schedules = optax_schedules()
    rates = [[float(schedule(n)) for n in range(UPDATES)] for schedule in schedules.values()]
    versions = {name: importlib.metadata.version(name) for name in ("optax", "torch", "numpy")}
    np.savez_compressed(
        HERE / "schedules.npz",
        versions=json.dumps(versions),
        schedules=json.dumps(list(schedules)),
        rates=np.array(rates),
        plateaus=json.dumps(PLATEAUS),
        plateau_losses=losses(),
        plateau_rates=np.array(list(torch_plateaus())),
    )


if __name__ == "__main__":
    main()
