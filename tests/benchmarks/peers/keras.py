"""Keras on JAX: ``keras.optimizers.RMSprop``, centered, by ``train_on_batch``.

Keras adds its epsilon to the variance, so that its losses differ.
"""

from __future__ import annotations

import os

os.environ["KERAS_BACKEND"] = "jax"

import keras

from tests.benchmarks.rungs import DECAY, EPSILON, LEARNING_RATE


def version():
    """Who this is."""
    return f"keras {keras.__version__} on {keras.backend.backend()}"


def network(rung):
    """A sequential model."""
    model = keras.Sequential([keras.Input((rung.sizes[0],))])
    for size in rung.sizes[1:-1]:
        model.add(keras.layers.Dense(size, activation=rung.activation))
    model.add(keras.layers.Dense(rung.sizes[-1]))
    model.set_weights(rung.parameters())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimiser = keras.optimizers.RMSprop(
        learning_rate=LEARNING_RATE, rho=DECAY, epsilon=EPSILON**2, centered=True
    )
    model.compile(optimiser, loss if rung.sizes[-1] > 1 else "mse")
    x, y = rung.data()

    def train(updates):
        for index in range(updates):
            start = index * rung.batch % rung.samples
            model.train_on_batch(x[start : start + rung.batch], y[start : start + rung.batch])
        # Another epsilon: nothing to compare.

    return train
