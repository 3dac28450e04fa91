"""JAX with optax: one jitted update with donated buffers, minibatches as slices of NumPy arrays."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import optax

from tests.benchmarks.rungs import DECAY, EPSILON, LEARNING_RATE

OPTIMISER = optax.rmsprop(LEARNING_RATE, decay=DECAY, eps=EPSILON, eps_in_sqrt=False, centered=True)


def prepare(rung):
    """A loop of so many updates."""
    train = network(rung)
    return train, f"optax {optax.__version__}, jax {jax.__version__}"


def network(rung):
    """A jitted update and a loop over slices of NumPy arrays."""

    def loss_of(layers, x, y):
        for index in range(0, len(layers), 2):
            x = x @ layers[index] + layers[index + 1]
            if index + 2 < len(layers):
                x = jnp.maximum(x, 0)
        if rung.sizes[-1] == 1:
            return jnp.mean((x - y) ** 2)
        return optax.softmax_cross_entropy_with_integer_labels(x, y).mean()

    @partial(jax.jit, donate_argnums=(0, 1))
    def update(layers, state, x, y):
        loss, gradients = jax.value_and_grad(loss_of)(layers, x, y)
        changes, state = OPTIMISER.update(gradients, state, layers)
        return optax.apply_updates(layers, changes), state, loss

    layers = [jnp.asarray(value) for value in rung.parameters()]
    held = [layers, OPTIMISER.init(layers)]
    x, y = rung.data()
    evaluate = jax.jit(loss_of)

    def train(updates):
        layers, state = held
        for index in range(updates):
            start = index * rung.batch % rung.samples
            batch = slice(start, start + rung.batch)
            layers, state, loss = update(layers, state, x[batch], y[batch])
        held[:] = layers, state
        loss.block_until_ready()
        return float(evaluate(layers, x[: rung.batch], y[: rung.batch]))

    return train
