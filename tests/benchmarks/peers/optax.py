"""JAX with optax: one jitted update with donated buffers, minibatches as slices of NumPy arrays.

Used as ``scan``, a hundred updates are one call, by ``lax.scan`` over stacked minibatches.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import optax

from tests.benchmarks.rungs import DECAY, EPSILON, LEARNING_RATE

TOGETHER = 100  # updates in a call, used as scan


def rmsprop(learning_rate=LEARNING_RATE):
    """The same RMSProp as everyone's."""
    return optax.rmsprop(learning_rate, decay=DECAY, eps=EPSILON, eps_in_sqrt=False, centered=True)


OPTIMISER = rmsprop()


def version():
    """Who this is."""
    return f"optax {optax.__version__}, jax {jax.__version__}"


def update_by(loss_of, optimiser=OPTIMISER):
    """An update as a function of parameters, state and minibatch."""

    def update(params, state, *batch):
        loss, gradients = jax.value_and_grad(loss_of)(params, *batch)
        changes, state = optimiser.update(gradients, state, params)
        return optax.apply_updates(params, changes), state, loss

    return update


def scanned(update):
    """The updates of a stack of minibatches as one function."""

    def body(carry, batch):
        *carry, loss = update(*carry, *batch)
        return tuple(carry), loss

    def many(params, state, *stacks):
        (params, state), losses = jax.lax.scan(body, (params, state), stacks)
        return params, state, losses

    return many


def network_loss(rung):
    """The loss of the rung's network."""

    def loss_of(layers, x, y):
        for index in range(0, len(layers), 2):
            x = x @ layers[index] + layers[index + 1]
            if index + 2 < len(layers):
                x = jnp.tanh(x) if rung.activation == "tanh" else jnp.maximum(x, 0)
        if rung.sizes[-1] == 1:
            return jnp.mean((x - y) ** 2)
        return optax.softmax_cross_entropy_with_integer_labels(x, y).mean()

    return loss_of


def network(rung, usage=""):
    """A jitted update and a loop over slices of NumPy arrays."""
    loss_of = network_loss(rung)
    optimiser = OPTIMISER
    if len(rung.rates) > 1:  # the rate is part of the state: one compilation for all
        optimiser = optax.inject_hyperparams(rmsprop)(learning_rate=LEARNING_RATE)
    update = update_by(loss_of, optimiser)
    call = jax.jit(scanned(update) if usage == "scan" else update, donate_argnums=(0, 1))
    x, y = rung.data()
    evaluate = jax.jit(loss_of)

    def start(rate):
        layers = [jnp.asarray(value) for value in rung.parameters()]
        state = optimiser.init(layers)
        if len(rung.rates) > 1:
            state.hyperparams["learning_rate"] = jnp.asarray(rate)
        return layers, state

    held = [start(LEARNING_RATE)]

    def train_some(layers, state, updates):
        together = TOGETHER if usage == "scan" else 1
        done = 0
        while done < updates:
            first = done * rung.batch % rung.samples
            count = min(together, updates - done, (rung.samples - first) // rung.batch)
            batch = [a[first : first + count * rung.batch] for a in (x, y)]
            if usage == "scan":
                batch = [a.reshape(count, rung.batch, *a.shape[1:]) for a in batch]
            layers, state, loss = call(layers, state, *batch)
            done += count
        loss.block_until_ready()
        return layers, state

    def train(updates):
        for rate in rung.rates:
            if len(rung.rates) > 1:
                held[:] = [start(rate)]
            held[:] = [train_some(*held[0], updates)]
        return float(evaluate(held[0][0], x[: rung.batch], y[: rung.batch]))

    return train


def update_alone(rung, usage=""):
    """Jitted updates with given gradients, on the device or, as ``numpy``, given to each call."""

    @partial(jax.jit, donate_argnums=(0, 1))
    def update(params, state, gradients):
        changes, state = OPTIMISER.update(list(gradients), state, params)
        return optax.apply_updates(params, changes), state

    params = [jnp.zeros(rung.size) for _ in range(rung.arrays)]
    held = [params, OPTIMISER.init(params)]
    gradients = rung.gradients if usage == "numpy" else list(map(jnp.asarray, rung.gradients))

    def train(updates):
        for index in range(updates):
            held[:] = update(*held, gradients[index % 8])
        jax.block_until_ready(held)
        return float(sum(param.mean() for param in held[0]) / rung.arrays)

    return train


def lstm(driven, states, recurrent):
    """The next states of an LSTM."""
    hidden, state = states
    i, f, g, o = jnp.split(driven + hidden @ recurrent, 4, axis=1)
    state = jax.nn.sigmoid(f) * state + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(state), state


def gru(driven, states, recurrent):
    """The next state of a GRU."""
    (hidden,) = states
    reset, update, new = jnp.split(hidden @ recurrent, 3, axis=1)
    by_reset, by_update, by_new = jnp.split(driven, 3, axis=1)
    reset, update = jax.nn.sigmoid(by_reset + reset), jax.nn.sigmoid(by_update + update)
    return ((1 - update) * jnp.tanh(by_new + reset * new) + update * hidden,)


def rnn(driven, states, recurrent):
    """The next state of a plain recurrent network."""
    return (jnp.tanh(driven + states[0] @ recurrent),)


CELLS = {"LSTM": (lstm, 2), "GRU": (gru, 1), "RNN": (rnn, 1)}  # with their number of states


def language_model(rung):
    """A network by ``lax.scan``."""
    cell, n_states = CELLS[rung.cell]

    def loss_of(params, text):
        driven = jax.nn.one_hot(text[:-1], rung.characters) @ params["input"] + params["bias"]

        def step(states, driven):
            states = cell(driven, states, params["recurrent"])
            return states, states[0]

        start = jnp.zeros((rung.batch, rung.units))
        _, hidden = jax.lax.scan(step, (start,) * n_states, driven)
        scores = hidden @ params["output"] + params["output_bias"]
        return optax.softmax_cross_entropy_with_integer_labels(scores, text[1:]).mean()

    update = jax.jit(update_by(loss_of), donate_argnums=(0, 1))
    evaluate = jax.jit(loss_of)
    params = {name: jnp.asarray(value) for name, value in rung.parameters().items()}
    held = [params, OPTIMISER.init(params)]
    texts = rung.texts()

    def train(updates):
        for index in range(updates):
            *held[:], loss = update(*held, texts[index % len(texts)])
        loss.block_until_ready()
        return float(evaluate(held[0], texts[0]))

    return train


def normalised(h, scale, shift):
    """Layer normalisation."""
    centred = h - h.mean(axis=-1, keepdims=True)
    return centred / jnp.sqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + 1e-5) * scale + shift


def encoder(rung, usage=""):
    """A jitted update, called with one minibatch."""
    parts, width = rung.heads, rung.units // rung.heads

    def loss_of(params, letters):
        given = iter(params)
        rows, length = letters.shape

        def heads(h):
            return h.reshape(rows, length, parts, width).transpose(0, 2, 1, 3)

        h = next(given)[letters] + next(given)
        for _ in range(rung.layers):
            a = normalised(h, next(given), next(given))
            query, key, value = (heads(a @ next(given)) for _ in range(3))
            scores = jax.nn.softmax(query @ key.transpose(0, 1, 3, 2) * width**-0.5)
            h = h + (scores @ value).transpose(0, 2, 1, 3).reshape(h.shape) @ next(given)
            a = normalised(h, next(given), next(given))
            h = h + jnp.maximum(a @ next(given) + next(given), 0) @ next(given) + next(given)
        scores = normalised(h, next(given), next(given)) @ next(given)
        return optax.softmax_cross_entropy_with_integer_labels(scores, letters).mean()

    return steps(loss_of, rung.parameters(), rung.data())


def convolved(images, weights):
    """The convolution of images, channels last, with filters in columns."""
    layout = ("NHWC", "HWIO", "NHWC")
    filters = weights.reshape(3, 3, images.shape[3], -1)
    return jax.lax.conv_general_dilated(images, filters, (1, 1), "SAME", dimension_numbers=layout)


OPERATIONS = {
    "batched product": jnp.matmul,
    "batch by matrix": jnp.matmul,
    "softmax": jax.nn.softmax,
    "log softmax": jax.nn.log_softmax,
    "layer norm": normalised,
    "embedding": lambda table, rows: table[rows],
    "convolution by indices": lambda x, w: convolved(x.reshape(len(x), 8, 8, -1), w),
    "convolve1d": jax.vmap(lambda x, w: jnp.convolve(x, w, mode="same"), in_axes=(0, None)),
    "convolve2d": lambda x, w: jax.scipy.signal.convolve2d(x, w, mode="same"),
}


def operation(rung):
    """An operation and its gradients, jitted."""
    arrays, integers = list(map(jnp.asarray, rung.arrays())), rung.integers()

    @jax.jit
    def call(arrays, *integers):
        def total(arrays):
            return jnp.sum(OPERATIONS[rung.name](*arrays, *integers) ** 2)

        return jax.value_and_grad(total)(arrays)

    def train(updates):
        for _ in range(updates):
            answer = call(arrays, *integers)
        total, _ = jax.block_until_ready(answer)
        return float(total)

    return train


def convnet(rung, usage=""):
    """A jitted update, called with one minibatch."""
    side = rung.side

    def loss_of(params, x, y):
        given = iter(params)
        h = x.reshape(rung.batch, side, side, 1)
        h = jnp.maximum(convolved(h, next(given)) + next(given), 0)
        for _ in range(rung.blocks):
            inner = jnp.maximum(convolved(h, next(given)) + next(given), 0)
            h = jnp.maximum(h + convolved(inner, next(given)) + next(given), 0)
        h = h.reshape(rung.batch, side // 2, 2, side // 2, 2, rung.channels).max(axis=(2, 4))
        scores = h.reshape(rung.batch, -1) @ next(given) + next(given)
        return optax.softmax_cross_entropy_with_integer_labels(scores, y).mean()

    return steps(loss_of, rung.parameters(), *rung.data())


def steps(loss_of, values, *batch):
    """Updates on one minibatch."""
    call = jax.jit(update_by(loss_of), donate_argnums=(0, 1))
    params = [jnp.asarray(value) for value in values]
    state = OPTIMISER.init(params)

    def train(updates):
        nonlocal params, state
        for _ in range(updates):
            params, state, loss = call(params, state, *batch)
        return float(loss)

    return train
