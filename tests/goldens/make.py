"""Make the golden trajectories: 50 updates of other libraries' RMSProp, in float64.

Every optimiser is fed the same fixed gradients, so that no model is needed; torch also trains
a linear layer through its own loss. Needs numpy, torch, keras, jax and optax:

    python tests/goldens/make.py
"""

import functools
import importlib.metadata
import inspect
import itertools
import json
import os
from pathlib import Path

import numpy as np

UPDATES = 50
HERE = Path(__file__).parent


def start():
    """A weight and a bias."""
    rng = np.random.default_rng(42)
    return [rng.normal(size=(2, 3)), rng.normal(size=2)]


def fixed_gradients():
    """Gradients of every update: for the weight and for the bias.

    Their norms lie between 0.2 and 17, so that every clip acts at some updates and not at
    others. One element is always 0, as behind a dead unit, and so is the whole 21st update.
    """
    rng = np.random.default_rng(0)
    scale = np.exp(rng.normal(size=(UPDATES, 1)))
    weight = scale[..., None] * rng.normal(size=(UPDATES, 2, 3))
    bias = scale * rng.normal(size=(UPDATES, 2))
    weight[:, 1, 2] = 0
    weight[20], bias[20] = 0, 0
    return [weight, bias]


def product(*axes):
    """Every choice of one dict of arguments from each axis, joined."""
    return [functools.reduce(dict.__or__, choice) for choice in itertools.product(*axes)]


CENTERED = [{}, {"centered": True}]
MOMENTUM = [{}, {"momentum": 0.9}]

TORCH = [
    *product(CENTERED, MOMENTUM, [{}, {"weight_decay": 0.01}]),
    {"lr": 0.001, "alpha": 0.9, "eps": 1e-3},
    {"lr": 0.1, "alpha": 0.5, "eps": 0.1, "momentum": 0.5, "weight_decay": 0.1},
    {"lr": 0.05, "alpha": 0.95, "eps": 1e-2, "centered": True, "momentum": 0.99},
    {"foreach": True, "centered": True, "momentum": 0.9, "weight_decay": 0.01},
    {"foreach": False, "eps": 1e-4},
]

TORCH_LINEAR = [
    {"lr": 0.001, "alpha": 0.99, "eps": 1e-8, "momentum": 0},
    {"momentum": 0.9},
    {"centered": True},
    {"weight_decay": 0.1},
    {"alpha": 0.9, "eps": 1e-3, "momentum": 0.5, "centered": True, "weight_decay": 0.1},
]

KERAS = [
    *product(
        CENTERED,
        MOMENTUM,
        [
            {},
            {"weight_decay": 0.1},
            {"clipnorm": 1.5},
            {"clipvalue": 0.5, "weight_decay": 0.1},
            {"global_clipnorm": 2.0},
        ],
    ),
    {"learning_rate": 0.1, "rho": 0.5, "epsilon": 0.1},
    {"learning_rate": 0.01, "rho": 0.99, "epsilon": 1e-3, "centered": True, "momentum": 0.5},
]

# Not in the grid: centered with bias_correction and eps_in_sqrt=False. The variance is exactly 0
# at the first update; optax subtracts two equal averages there and takes the root of what rounding
# leaves, which is NaN if negative. Inside the root a large eps drowns it.
OPTAX = [
    *product(
        [{"learning_rate": 0.01}],
        CENTERED,
        [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}],
        [{"eps": 1e-3}, {"eps": 1e-3, "eps_in_sqrt": False}],
        [{}, {"initial_scale": 1.0}],
    ),
    *product(
        [{"learning_rate": 0.01, "bias_correction": True}],
        [{"eps": 1e-2}, {"eps": 1e-2, "eps_in_sqrt": False}, {"eps": 1e-2, "centered": True}],
        [{}, {"momentum": 0.9, "nesterov": True}],
    ),
    {"learning_rate": 0.1},
    {"learning_rate": 0.1, "decay": 0.99, "nesterov": True},
    {"learning_rate": 0.001, "decay": 0.5, "momentum": 0.0, "centered": True},
]


def torch_follow(arguments):
    """Parameters after each update of torch.optim.RMSprop."""
    import torch

    params = [torch.nn.Parameter(torch.tensor(p)) for p in start()]
    optimizer = torch.optim.RMSprop(params, **arguments)
    for gradients in zip(*fixed_gradients(), strict=True):
        for p, g in zip(params, gradients, strict=True):
            p.grad = torch.tensor(g)
        optimizer.step()
        yield [p.detach().numpy().copy() for p in params]


def keras_follow(arguments):
    """Parameters after each update of keras.optimizers.RMSprop."""
    import keras

    params = [keras.Variable(p, dtype="float64") for p in start()]
    optimizer = keras.optimizers.RMSprop(**arguments)
    for gradients in zip(*fixed_gradients(), strict=True):
        gradients = [keras.ops.convert_to_tensor(g, dtype="float64") for g in gradients]
        optimizer.apply(gradients, params)
        yield [keras.ops.convert_to_numpy(p) for p in params]


def optax_follow(arguments):
    """Parameters after each update of optax.rmsprop."""
    import jax.numpy as jnp
    import optax

    params = [jnp.asarray(p) for p in start()]
    optimizer = optax.rmsprop(**arguments)
    state = optimizer.init(params)
    for gradients in zip(*fixed_gradients(), strict=True):
        steps, state = optimizer.update([jnp.asarray(g) for g in gradients], state, params)
        params = optax.apply_updates(params, steps)
        yield [np.array(p) for p in params]


def torch_linear():
    """Train nn.Linear(10, 1) on 64 fixed samples by the mean squared error."""
    import torch

    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(64, 10)), rng.normal(size=(64, 1))
    initial = [rng.normal(size=(1, 10)), rng.normal(size=1)]

    def follow(arguments):
        model = torch.nn.Linear(10, 1, dtype=torch.float64)
        model.weight.data, model.bias.data = map(torch.tensor, initial)
        loss_fn = torch.nn.MSELoss()
        optimizer = torch.optim.RMSprop(model.parameters(), **arguments)
        for _ in range(UPDATES):
            optimizer.zero_grad()
            loss_fn(model(torch.tensor(x)), torch.tensor(y)).backward()
            optimizer.step()
            yield [p.detach().numpy().copy() for p in model.parameters()]

    weight, bias = stack(follow, TORCH_LINEAR)
    return {
        "linear_cases": json.dumps(TORCH_LINEAR),
        "linear_x": x,
        "linear_y": y,
        "linear_start_weight": initial[0],
        "linear_start_bias": initial[1],
        "linear_weight": weight,
        "linear_bias": bias,
    }


def stack(follow, cases):
    """Weights and biases of all cases: arrays of (case, update, *shape)."""
    trajectories = [list(follow(arguments)) for arguments in cases]
    return [np.array([[p[i] for p in t] for t in trajectories]) for i in (0, 1)]


def signature(function):
    """Arguments of an optimiser with their defaults; those without a default have none here."""
    parameters = inspect.signature(function).parameters.values()
    return {
        p.name: None if p.default is p.empty else p.default
        for p in parameters
        if p.kind is not p.VAR_KEYWORD and p.name not in ("self", "params")
    }


def save(library, function, follow, cases, versions, **more):
    """Write one library's golden file."""
    weight, bias = stack(follow, cases)
    for array in (weight, bias):
        assert array.dtype == np.float64
        assert np.isfinite(array).all()
    gradient_weight, gradient_bias = fixed_gradients()
    start_weight, start_bias = start()
    np.savez_compressed(
        HERE / f"{library}.npz",
        versions=json.dumps({name: importlib.metadata.version(name) for name in versions}),
        defaults=json.dumps(signature(function)),
        cases=json.dumps(cases),
        start_weight=start_weight,
        start_bias=start_bias,
        gradient_weight=gradient_weight,
        gradient_bias=gradient_bias,
        weight=weight,
        bias=bias,
        **more,
    )
    print(f"{library}: {len(cases)} cases, {(HERE / f'{library}.npz').stat().st_size} bytes")


def main():
    """Make all three files."""
    os.environ["KERAS_BACKEND"] = "jax"
    import jax
    import keras
    import optax
    import torch

    jax.config.update("jax_enable_x64", True)
    keras.config.set_floatx("float64")
    more = torch_linear()
    save("torch", torch.optim.RMSprop, torch_follow, TORCH, ["torch", "numpy"], **more)
    versions = ["keras", "jax", "numpy"]
    save("keras", keras.optimizers.RMSprop, keras_follow, KERAS, versions)
    save("optax", optax.rmsprop, optax_follow, OPTAX, ["optax", "jax", "numpy"])


if __name__ == "__main__":
    main()
