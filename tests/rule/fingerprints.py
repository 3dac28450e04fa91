"""Print the fingerprints of many losses, for another process to compare."""

import json

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op

from downhill_rms.rule import fingerprint, read_graph

SEQUENCE = np.arange(5.0)


def twice(x):
    """What an operation of a user's own computes."""
    return 2 * x


class Own(Op):
    """An operation with properties that have no order, and none of a number's kind."""

    __props__ = ("tags", "function")
    tags, function = frozenset({"one", "two", "three", "four"}), staticmethod(twice)

    def make_node(self, x):
        return Apply(self, [x], [x.type()])

    def perform(self, node, inputs, output_storage):
        output_storage[0][0] = self.function(*inputs)


def losses():
    """Losses of many kinds of operations, by name."""
    x, y = pt.matrix("x"), pt.vector("y")
    labels = pt.lvector("labels")
    w = pytensor.shared(np.zeros(3), name="w")
    big = pytensor.shared(np.zeros((3, 4)), name="big")
    yield "line", pt.sqr(x @ w - y).mean()
    yield "decay", pt.sqr(x @ w - y).mean() + 0.01 * pt.sqr(w).sum()
    yield "softmax", -pt.log(pt.special.softmax(x @ big, axis=1))[0, labels].mean()
    yield "chosen", -pt.special.log_softmax(x @ big)[pt.arange(labels.shape[0]), labels].mean()
    yield "slices", (x[:, 1:] @ w[1:]).sum() + x[0, ::2].sum() + x[-1].sum()
    yield "constant array", pt.sqr(w[:, None] - SEQUENCE).sum()
    yield "clip", pt.clip(pt.maximum(x @ w, 0), 0, 6).mean() + abs(w).max()
    yield "switch", pt.switch(pt.gt(y, 0), pt.exp(-x @ w), pt.tanh(x @ w)).mean()
    _, mask = pt.random.shared_rng(seed=1, name="dropout").bernoulli(0.8, size=x.shape)
    yield "dropout", pt.sqr((x * mask) @ w - y).mean()
    states = pytensor.scan(
        lambda v, h, w: pt.tanh(v + h * w.sum()),
        sequences=[y],
        outputs_info=[pt.constant(0.0, dtype="float64")],
        non_sequences=[w],
        return_updates=False,
    )
    yield "scan", states[-1]
    joined = pt.concatenate([w, w**2]).reshape((2, 3))
    yield "shapes", (joined.T.sum(axis=0) / x.shape[0]).std() + x.dimshuffle(1, 0).var()
    yield "own operation", Own()(pt.sqr(w).sum())
    yield "linear algebra", pt.linalg.det(big.T @ big + pt.eye(4)) + pt.sqrt(pt.dot(w, w))


def main():
    """One line of JSON."""
    print(json.dumps({name: fingerprint(read_graph(loss)) for name, loss in losses()}))


if __name__ == "__main__":
    main()
