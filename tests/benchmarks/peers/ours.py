"""This library, through ``Trainer.iterate``, as a user calls it."""

import pytensor
import pytensor.tensor as pt
from pytensor.tensor.special import log_softmax

import downhill_rms
from downhill_rms import Dataset, Trainer
from tests.benchmarks.rungs import DECAY, EPSILON, LEARNING_RATE

OPTIONS = {
    "learning_rate": LEARNING_RATE,
    "decay": DECAY,
    "rms_regularizer": EPSILON,
    "regularize": "rms",
    "validate_every": 10**9,
    "restore_best": False,
    "progress": False,
}


def prepare(rung):
    """A trainer, and a call of its ``minimize`` for each block."""
    trainer, data, first = network(rung)

    def train(updates):
        trainer.minimize(data, first, max_updates=updates, **OPTIONS)
        return trainer.evaluate(first)["loss"]

    return train, f"downhill_rms {downhill_rms.__version__}, PyTensor {pytensor.__version__}"


def network(rung):
    """The rung's network and its data."""
    x = pt.fmatrix("x")
    y = pt.fmatrix("y") if rung.sizes[-1] == 1 else pt.ivector("y")
    layers = [
        pytensor.shared(value, name=f"p{index}") for index, value in enumerate(rung.parameters())
    ]
    hidden = x
    for index in range(0, len(layers), 2):
        hidden = hidden @ layers[index] + layers[index + 1]
        if index + 2 < len(layers):
            hidden = pt.maximum(hidden, 0)
    if rung.sizes[-1] == 1:
        loss = pt.sqr(hidden - y).mean()
    else:
        one_hot = pt.eq(y[:, None], pt.arange(rung.sizes[-1], dtype="int32"))
        loss = -pt.where(one_hot, log_softmax(hidden, axis=-1), 0).sum(axis=1).mean()
    trainer = Trainer(loss, layers, [x, y])
    data = Dataset(list(rung.data()), batch_size=rung.batch, shuffle=None)
    return trainer, data, [part[: rung.batch] for part in rung.data()]
