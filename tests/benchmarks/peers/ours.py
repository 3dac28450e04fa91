"""This library, as a user calls it: through ``Trainer.minimize`` and ``Trainer.step``."""

import numpy as np
import pytensor
import pytensor.sparse
import pytensor.tensor as pt
from pytensor.gradient import zero_grad
from pytensor.tensor.signal import convolve1d, convolve2d
from pytensor.tensor.special import log_softmax, softmax

import downhill_rms
from downhill_rms import Dataset, Trainer
from downhill_rms.compiling.modes import REWRITTEN, training_mode
from examples.convnet import convolution, pooled
from examples.transformer import normalised
from tests.benchmarks.rungs import DECAY, EPSILON, LEARNING_RATE

RULE = {
    "learning_rate": LEARNING_RATE,
    "decay": DECAY,
    "rms_regularizer": EPSILON,
    "regularize": "rms",
}
OPTIONS = {**RULE, "validate_every": 10**9, "restore_best": False, "progress": False}

# How it can be used: a mode, and updates in a call.
USAGES = {
    "": (None, 1),
    "many": (None, 100),
    "tiered": ("tiered", 1),
    "plain": ("NUMBA", 1),
    "c": ("CVM", 1),
    "jax": ("JAX", 1),
}


def version():
    """Who this is."""
    return f"downhill_rms {downhill_rms.__version__}, PyTensor {pytensor.__version__}"


def shared(values):
    """Parameters, named in order."""
    return [pytensor.shared(value, name=f"p{index}") for index, value in enumerate(values)]


def cross_entropy(scores, classes, count):
    """Mean cross-entropy of rows of scores."""
    one_hot = pt.eq(classes[:, None], pt.arange(count, dtype="int32"))
    return -pt.where(one_hot, log_softmax(scores, axis=-1), 0).sum(axis=1).mean()


def network_trainer(rung, usage=""):
    """A trainer of the rung's network."""
    x = pt.fmatrix("x")
    y = pt.fmatrix("y") if rung.sizes[-1] == 1 else pt.ivector("y")
    layers = shared(rung.parameters())
    hidden = x
    for index in range(0, len(layers), 2):
        hidden = hidden @ layers[index] + layers[index + 1]
        if index + 2 < len(layers):
            hidden = pt.tanh(hidden) if rung.activation == "tanh" else pt.maximum(hidden, 0)
    if rung.sizes[-1] == 1:
        loss = pt.sqr(hidden - y).mean()
    else:
        loss = cross_entropy(hidden, y, rung.sizes[-1])
    return Trainer(loss, layers, [x, y], mode=USAGES[usage][0])


def network(rung, usage=""):
    """A call of ``minimize`` for each block, or for each learning rate."""
    trainer = network_trainer(rung, usage)
    data = Dataset(list(rung.data()), batch_size=rung.batch, shuffle=None)
    first = [part[: rung.batch] for part in rung.data()]
    start = trainer.state_dict()
    options = {**OPTIONS, "updates_per_call": USAGES[usage][1]}

    def train(updates):
        for rate in rung.rates:
            if len(rung.rates) > 1:
                trainer.load_state_dict(start)
            trainer.minimize(data, first, max_updates=updates, **{**options, "learning_rate": rate})
        return trainer.evaluate(first)["loss"]

    return train


def update_alone(rung, usage=""):
    """Steps with a loss that is 0 and whose gradient is the input."""
    gradients = pt.fmatrix("gradients")
    params = shared(np.zeros(rung.size, "float32") for _ in range(rung.arrays))
    products = sum((param * gradients[index]).sum() for index, param in enumerate(params))
    trainer = Trainer(products - zero_grad(products), params, [gradients], mode=USAGES[usage][0])
    trainer.set_hyperparameters(**RULE)

    def train(updates):
        for index in range(updates):
            trainer.step(rung.gradients[index % 8])
        return float(np.mean([param.get_value(borrow=True).mean() for param in params]))

    return train


def encoder(rung, usage=""):
    """Steps on one minibatch."""
    params = shared(rung.parameters())
    letters = pt.imatrix("letters")
    rows, length, parts = rung.batch, rung.length, rung.heads
    given = iter(params)

    def heads(h):
        return h.reshape((rows, length, parts, rung.units // parts)).dimshuffle(0, 2, 1, 3)

    h = next(given)[letters] + next(given)
    for _ in range(rung.layers):
        a = normalised(h, next(given), next(given))
        query, key, value = (heads(a @ next(given)) for _ in range(3))
        scores = query @ key.dimshuffle(0, 1, 3, 2) * np.float32((rung.units // parts) ** -0.5)
        mixed = (softmax(scores, axis=-1) @ value).dimshuffle(0, 2, 1, 3)
        h = h + mixed.reshape((rows, length, rung.units)) @ next(given)
        a = normalised(h, next(given), next(given))
        hidden = pt.maximum(a @ next(given) + next(given), np.float32(0))
        h = h + hidden @ next(given) + next(given)
    scores = normalised(h, next(given), next(given)) @ next(given)
    logarithms = log_softmax(scores, axis=-1).reshape((rows * length, rung.characters))
    loss = -logarithms[pt.arange(rows * length), letters.flatten()].mean()
    return steps(Trainer(loss, params, [letters], mode=USAGES[usage][0]), rung.data())


OPERATIONS = {
    "batched product": lambda x, y: x @ y,
    "batch by matrix": lambda x, w: x @ w,
    "softmax": lambda x: softmax(x, axis=-1),
    "log softmax": lambda x: log_softmax(x, axis=-1),
    "layer norm": normalised,
    "embedding": lambda table, rows: table[rows],
    "convolution by indices": lambda x, w: convolution(x, w, side=8),
    "convolve1d": lambda x, w: convolve1d(x, w[None], mode="same"),
    "convolve2d": lambda x, w: convolve2d(x, w, mode="same"),
}


def operation(rung, usage=""):
    """A function compiled as a training step is."""
    arrays, integers = rung.arrays(), rung.integers()
    given = [pt.tensor(dtype="float32", shape=(None,) * array.ndim) for array in arrays]
    others = [pt.tensor(dtype="int32", shape=(None,) * array.ndim) for array in integers]
    total = pt.sqr(OPERATIONS[rung.name](*given, *others)).sum()
    outputs = [total, *pt.grad(total, given)]
    mode = training_mode(USAGES[usage][0] or REWRITTEN)
    function = pytensor.function([*given, *others], outputs, mode=mode, trust_input=True)

    def train(updates):
        for _ in range(updates):
            total, *_ = function(*arrays, *integers)
        return float(total)

    return train


def convnet(rung, usage=""):
    """The layers of ``examples/convnet.py``, on one minibatch."""
    params = shared(rung.parameters())
    x, y = pt.fmatrix("x"), pt.ivector("y")
    given = iter(params)
    h = x.reshape((rung.batch, rung.side**2, 1))
    h = pt.maximum(convolution(h, next(given), rung.side) + next(given), 0)
    for _ in range(rung.blocks):
        inner = pt.maximum(convolution(h, next(given), rung.side) + next(given), 0)
        h = pt.maximum(h + convolution(inner, next(given), rung.side) + next(given), 0)
    scores = pooled(h, rung.side) @ next(given) + next(given)
    loss = cross_entropy(scores, y, rung.classes)
    trainer = Trainer(loss, params, [x, y], mode=USAGES[usage][0])
    return steps(trainer, rung.data())


def steps(trainer, batch):
    """Steps on one minibatch."""
    trainer.set_hyperparameters(**RULE)

    def train(updates):
        for _ in range(updates):
            values = trainer.step(batch)
        return values["loss"]

    return train


def lstm(driven, recurrent, hidden, state):
    """The next states of an LSTM."""
    i, f, g, o = (d + hidden @ w for d, w in zip(driven, recurrent, strict=True))
    state = pt.sigmoid(f) * state + pt.sigmoid(i) * pt.tanh(g)
    return pt.sigmoid(o) * pt.tanh(state), state


def gru(driven, recurrent, hidden):
    """The next state of a GRU."""
    reset, update, new = (hidden @ w for w in recurrent)
    reset, update = pt.sigmoid(driven[0] + reset), pt.sigmoid(driven[1] + update)
    return [(1 - update) * pt.tanh(driven[2] + reset * new) + update * hidden]


def rnn(driven, recurrent, hidden):
    """The next state of a plain recurrent network."""
    return [pt.tanh(driven[0] + hidden @ recurrent[0])]


CELLS = {"LSTM": (lstm, 2), "GRU": (gru, 1), "RNN": (rnn, 1)}  # with their number of states


def language_model(rung, usage=""):
    """A network by ``pytensor.scan``, each gate with matrices of its own."""
    cell, n_states = CELLS[rung.cell]
    gates = range(rung.gates)
    t = pt.imatrix("t")  # time, text
    times, batch = t.shape[0] - 1, t.shape[1]
    params = {}
    for name, value in rung.parameters().items():
        parts = [value] if name.startswith("output") else np.split(value, rung.gates, axis=-1)
        for index, part in enumerate(parts):
            params[name, index] = pytensor.shared(part.copy(), name=f"{name}{index}")
    x = pt.eq(t[:-1].reshape((-1, 1)), pt.arange(rung.characters, dtype="int32")).astype("float32")
    driven = [
        (x @ params["input", gate] + params["bias", gate]).reshape((times, batch, rung.units))
        for gate in gates
    ]

    def step(*given):
        states = given[rung.gates : rung.gates + n_states]
        return list(cell(given[: rung.gates], given[-rung.gates :], *states))

    start = pt.zeros((batch, rung.units), dtype="float32")
    hidden, *_ = pytensor.scan(
        step,
        sequences=driven,
        outputs_info=[start] * n_states,
        non_sequences=[params["recurrent", gate] for gate in gates],
        return_list=True,
        return_updates=False,
    )
    scores = hidden.reshape((-1, rung.units)) @ params["output", 0] + params["output_bias", 0]
    loss = cross_entropy(scores, t[1:].flatten(), rung.characters)
    trainer = Trainer(loss, list(params.values()), [t], mode=USAGES[usage][0])
    trainer.set_hyperparameters(**RULE)
    texts = rung.texts()

    def train(updates):
        for index in range(updates):
            trainer.step(texts[index % len(texts)])
        return trainer.evaluate(Dataset(texts[0], batch_size=0))["loss"]

    return train


def sparse(rung, usage=""):
    """Logistic regression on a CSR input."""
    x, y = pytensor.sparse.csr_fmatrix("x"), pt.fvector("y")
    w = pytensor.shared(np.zeros((rung.features, 1), "float32"), name="w", shape=(None, 1))
    b = pytensor.shared(np.float32(0), name="b")
    score = pytensor.sparse.structured_dot(x, w)[:, 0] + b
    trainer = Trainer((pt.softplus(score) - y * score).mean(), [w, b], [x, y])
    data = Dataset(list(rung.data()), batch_size=rung.batch, shuffle=None)
    first = [part[: rung.batch] for part in rung.data()]

    def train(updates):
        trainer.minimize(data, first, max_updates=updates, **OPTIONS)
        return trainer.evaluate(first)["loss"]

    return train
