"""The rungs: networks, data and numbers that every contestant is given alike."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse

LEARNING_RATE, DECAY, EPSILON = 1e-3, 0.95, 1e-4  # centered, the epsilon added to the root


def layers(shapes):
    """Weights of these shapes, each with its bias."""
    rng = np.random.default_rng(0)
    arrays = []
    for rows, columns in shapes:
        weights = rng.standard_normal((rows, columns)) / np.sqrt(rows)
        arrays += [weights.astype("float32"), np.zeros(columns, "float32")]
    return arrays


@dataclass(frozen=True)
class Network:
    """A feed-forward network with its data.

    Attributes
    ----------
    title : str
        What the table calls it.
    sizes : tuple of int
        Features, hidden units and classes; one output stands for a regression.
    samples, batch : int
        Samples in the data set, and in a minibatch.
    updates : int
        Updates that one measurement makes.
    contestants : tuple of str
        Who takes part: modules of `peers`, after a colon how they are used; ratios are to the
        first.
    rates : tuple of float
        Learning rates that are tried one after the other, each from the same start.
    activation : {"relu", "tanh"}
        Between two layers.
    """

    title: str
    sizes: tuple[int, ...]
    samples: int
    batch: int
    updates: int
    contestants: tuple[str, ...]
    rates: tuple[float, ...] = (LEARNING_RATE,)
    activation: str = "relu"
    kind = "network"

    def parameters(self):
        """Weights and biases of each layer, float32, the same for everyone."""
        return layers(zip(self.sizes, self.sizes[1:], strict=False))

    def data(self):
        """Inputs, and targets: a column of numbers, or classes."""
        rng = np.random.default_rng(1)
        x = rng.standard_normal((self.samples, self.sizes[0])).astype("float32")
        if self.sizes[-1] == 1:
            y = (x @ rng.standard_normal((self.sizes[0], 1))).astype("float32")
        else:
            y = rng.integers(0, self.sizes[-1], self.samples).astype("int32")
        return x, y


@dataclass(frozen=True)
class UpdateAlone:
    """The update of parameters by given gradients, which vary.

    Attributes
    ----------
    arrays, size : int
        Parameters, and numbers in each.
    """

    title: str
    arrays: int
    size: int
    updates: int
    contestants: tuple[str, ...]
    kind = "update_alone"

    @cached_property
    def gradients(self):
        """Eight gradients of all arrays, which take turns."""
        rng = np.random.default_rng(0)
        return rng.standard_normal((8, self.arrays, self.size), dtype="float32")


@dataclass(frozen=True)
class Encoder:
    """A transformer's encoder that tells which letter stands at each place.

    Attributes
    ----------
    layers, units, heads : int
        Layers, the numbers that stand for a letter, and into how many parts attention divides
        them. Four times as many are hidden between two layers.
    """

    layers: int
    updates: int
    contestants: tuple[str, ...]
    units: int = 64
    heads: int = 4
    characters: int = 32
    length: int = 32
    batch: int = 16
    kind = "encoder"

    @property
    def title(self):
        """What the table calls it."""
        return f"encoder, {self.layers} layers of {self.units} units"

    def parameters(self):
        """Embeddings and places, each layer's arrays in the order of their use, and the output."""
        rng = np.random.default_rng(0)
        n, wide = self.units, 4 * self.units
        normal = [(n,), (n,)]
        layer = [*normal, *[(n, n)] * 4, *normal, (n, wide), (wide,), (wide, n), (n,)]
        shapes = [(self.characters, n), (self.length, n)]
        shapes += [*layer * self.layers, *normal, (n, self.characters)]
        arrays = [rng.standard_normal(shape) / np.sqrt(shape[0]) for shape in shapes]
        return [array.astype("float32") for array in arrays]

    def data(self):
        """A minibatch of letters."""
        return np.random.default_rng(1).integers(
            0, self.characters, (self.batch, self.length), dtype="int32"
        )


@dataclass(frozen=True)
class Operation:
    """The sum of an operation's squares, and its gradients by all arrays that it is given.

    Attributes
    ----------
    name : str
        By which the contestants know the operation.
    shapes : tuple of tuple of int
        Of the arrays.
    classes : int or None
        For an operation that is given integers below this number too, of the shape ``taken``.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    updates: int
    contestants: tuple[str, ...]
    classes: int | None = None
    taken: tuple[int, ...] = ()
    kind = "operation"

    @property
    def title(self):
        """What the table calls it."""
        sizes = ", ".join(" x ".join(map(str, shape)) for shape in (*self.shapes, self.taken))
        return f"with its gradients, {sizes.removesuffix(', ')}"

    def arrays(self):
        """What is differentiated by, in single precision."""
        rng = np.random.default_rng(0)
        return [rng.standard_normal(shape).astype("float32") / 4 for shape in self.shapes]

    def integers(self):
        """What is given besides."""
        rng = np.random.default_rng(1)
        return [rng.integers(0, self.classes, self.taken, dtype="int32")] if self.taken else []


@dataclass(frozen=True)
class Convnet:
    """A residual network of convolutions, 3 x 3, on images of one colour.

    Attributes
    ----------
    blocks, channels : int
        Residual blocks of two convolutions each, and the channels between them.
    """

    blocks: int
    updates: int
    contestants: tuple[str, ...]
    channels: int = 24
    side: int = 8
    classes: int = 10
    batch: int = 32
    kind = "convnet"

    @property
    def title(self):
        """What the table calls it."""
        return f"convolutions, {self.blocks} residual blocks of {self.channels} channels"

    def parameters(self):
        """Weights, (9 * channels, filters), and biases of each layer."""
        n = self.channels
        rows = [9, *[9 * n] * (2 * self.blocks), (self.side // 2) ** 2 * n]
        columns = [*[n] * (2 * self.blocks + 1), self.classes]
        return layers(zip(rows, columns, strict=True))

    def data(self):
        """A minibatch of images as rows, and their classes."""
        rng = np.random.default_rng(1)
        x = rng.random((self.batch, self.side**2), dtype="float32")
        return x, rng.integers(0, self.classes, self.batch, dtype="int32")


@dataclass(frozen=True)
class LanguageModel:
    """A recurrent network that predicts the next character.

    Attributes
    ----------
    cell : {"LSTM", "GRU", "RNN"}
        What the network is made of, by the names of `torch.nn`.
    """

    updates: int
    contestants: tuple[str, ...]
    cell: str = "LSTM"
    units: int = 128
    characters: int = 64
    length: int = 64
    batch: int = 32
    kind = "language_model"

    @property
    def title(self):
        """What the table calls it."""
        sizes = f"{self.units} units, batch {self.batch}, {self.length} characters"
        return f"{self.cell}, {sizes}"

    @property
    def gates(self):
        """How many products with the state a step makes."""
        return {"LSTM": 4, "GRU": 3, "RNN": 1}[self.cell]

    def parameters(self):
        """Weights by name, with the gates' columns as in `torch.nn`.

        An LSTM's are input, forget, cell, output, a GRU's reset, update, new.
        """
        rng = np.random.default_rng(0)
        width = self.gates * self.units
        shapes = {
            "input": (self.characters, width),
            "recurrent": (self.units, width),
            "bias": (width,),
            "output": (self.units, self.characters),
            "output_bias": (self.characters,),
        }
        return {
            name: (rng.standard_normal(shape) / np.sqrt(shape[0]) * (len(shape) > 1)).astype("f")
            for name, shape in shapes.items()
        }

    def texts(self):
        """Twenty minibatches of characters, (minibatch, time, text)."""
        rng = np.random.default_rng(1)
        shape = (20, self.length + 1, self.batch)
        return rng.integers(0, self.characters, shape).astype("int32")


@dataclass(frozen=True)
class Sparse:
    """Logistic regression on sparse rows."""

    title: str
    updates: int
    contestants: tuple[str, ...]
    features: int = 50_000
    nonzeros: int = 100
    samples: int = 25_600
    batch: int = 256
    kind = "sparse"

    def data(self):
        """Rows as a CSR matrix, and classes 0 and 1 that follow from them."""
        rng = np.random.default_rng(0)
        columns = rng.integers(0, self.features, (self.samples, self.nonzeros))
        values = rng.standard_normal(columns.size).astype("float32")
        starts = np.arange(0, columns.size + 1, self.nonzeros)
        x = scipy.sparse.csr_matrix(
            (values, columns.ravel(), starts), shape=(self.samples, self.features)
        )
        x.sum_duplicates()
        y = (x @ rng.standard_normal(self.features) > 0).astype("float32")
        return x, y


@dataclass(frozen=True)
class Afresh:
    """A rung that is measured in processes started for it, imports included.

    Attributes
    ----------
    network : Network or UpdateAlone
        What is trained.
    updates : tuple of int
        What the process is asked for, one after the other.
    figures : callable
        Takes the answers to a list of what is measured, its unit and the figure.
    contestants : dict of str to tuple of str
        Who takes part, where PyTensor's cache on disk is empty or warm.
    """

    network: Network | UpdateAlone
    updates: tuple[int, ...]
    figures: Callable[[list[dict[str, float]]], list[tuple[str, str, float]]]
    contestants: dict[str, tuple[str, ...]]


def start_figures(answers):
    """Seconds from the start of a process."""
    whats = ("first update", "1,000th update")
    return [(what, "s", answer["since_start"]) for what, answer in zip(whats, answers, strict=True)]


def time_in_all(answers):
    """Seconds from the start of a process to its end."""
    return [("from start to end", "s", answers[-1]["since_start"])]


def peak_memory(answers):
    """What a process has gained since its imports."""
    return [("peak memory", "MB", answers[-1]["bytes"] / 1e6)]


ONE_CALL = ("ours", "torch", "optax", "ours:many", "optax:scan")
WARM = ("ours", "torch", "optax")
BOTH = ("ours", "torch", "ours:jax", "optax")
ALONE = "update alone, {} million parameters"
ONE_LAYER = (784, 1024, 10), 6400, 128, 50, WARM
C = Network("784-256-10, batch 64", (784, 256, 10), 6400, 64, 200, BOTH)
E1, E50 = (
    UpdateAlone(ALONE.format(millions), 1, millions * 1_000_000, updates, WARM)
    for millions, updates in ((1, 100), (50, 8))
)

RUNGS = {
    "A": Network("5-feature regression, batch 10", (5, 1), 1500, 10, 1500, ONE_CALL),
    "B": Network("64-128-10, batch 32", (64, 128, 10), 1792, 32, 560, ONE_CALL),
    "C": C,
    "D": Network("784-1024-1024-10, batch 128", (784, 1024, 1024, 10), 6400, 128, 50, BOTH),
    "D-relu": Network("784-1024-10, batch 128", *ONE_LAYER),
    "D-tanh": Network("784-1024-10, batch 128, tanh", *ONE_LAYER, activation="tanh"),
    "D-deep": Network("784-5 x 256-10, batch 64", (784, *(256,) * 5, 10), 6400, 64, 100, WARM),
    "D-wide": Network("784-4096-4096-10, batch 256", (784, 4096, 4096, 10), 6400, 256, 20, WARM),
    "E0.1": UpdateAlone(ALONE.format(0.1), 1, 100_000, 400, WARM),
    "E1": E1,
    "E10": UpdateAlone(ALONE.format(10), 1, 10_000_000, 24, (*BOTH, "optax:numpy")),
    "E50": E50,
    "F40": UpdateAlone("1 million parameters in 40 arrays", 40, 25_000, 100, WARM),
    "F400": UpdateAlone("1 million in 400 arrays", 400, 2_500, 20, WARM),
    "G": LanguageModel(20, BOTH),
    "G-32": LanguageModel(200, WARM, units=32, batch=1, length=20),
    "G-512": LanguageModel(10, WARM, units=512, batch=16, length=20),
    "G-GRU": LanguageModel(20, WARM, "GRU"),
    "G-RNN": LanguageModel(40, WARM, "RNN"),
    "H": Sparse("sparse logistic regression, batch 256", 100, ("ours", "torch", "sklearn")),
}

RATES = tuple(np.geomspace(1e-4, 1e-2, 10).tolist())
J = Network("ten learning rates, 64-128-10", (64, 128, 10), 1792, 32, 560, WARM, RATES)

FRESH = {
    "I": Afresh(
        *(C, (1, 999), start_figures),
        {"empty": ("ours:tiered", "ours", "torch", "optax"), "warm": WARM},
    ),
    "J": Afresh(J, (560,), time_in_all, {"warm": WARM}),
    "L1": Afresh(E1, (8,), peak_memory, {"warm": WARM}),
    "L50": Afresh(E50, (8,), peak_memory, {"warm": WARM}),
}

# Rungs that differ in one size, by that size.
GROWTH = {
    "parameters": {
        size: UpdateAlone(f"{size} parameters", 1, size, max(10**7 // size, 8), WARM)
        for size in (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
    },
    "arrays": {
        count: UpdateAlone(f"{count} arrays", count, 1_000_000 // count, 50, WARM)
        for count in (1, 2, 5, 10, 20, 40)
    },
    "minibatch": {
        batch: Network(f"batch {batch}", (784, 256, 10), 6400, batch, 6400 // batch, WARM)
        for batch in (8, 16, 32, 64, 128, 256, 640)
    },
    "epochs": {
        epochs: Network(f"{epochs} epochs", (64, 128, 10), 1792, 32, 56 * epochs, WARM)
        for epochs in (1, 3, 10, 30, 100)
    },
}

# Operations alone.
OPERATIONS = {
    operation.name: operation
    for operation in (
        Operation("batched product", ((64, 32, 16), (64, 16, 32)), 200, WARM),
        Operation("batch by matrix", ((16, 32, 64), (64, 256)), 200, WARM),
        Operation("softmax", ((16, 4, 32, 32),), 200, WARM),
        Operation("log softmax", ((512, 32),), 200, WARM),
        Operation("layer norm", ((512, 64), (64,), (64,)), 200, WARM),
        Operation("embedding", ((1000, 64),), 200, WARM, 1000, (16, 32)),
        Operation("convolution by indices", ((32, 64, 24), (9 * 24, 24)), 50, WARM),
        Operation("convolve1d", ((64, 1000), (9,)), 50, WARM),
        Operation("convolve2d", ((256, 256), (3, 3)), 20, WARM),
    )
}

# Rungs that differ in what there is to compile; `depth` measures them on an empty cache.
DEPTH = {
    "layers": {
        count: Network(f"{count} layers", (64, *(128,) * (count - 1), 10), 1792, 32, 20, WARM)
        for count in (2, 5, 10, 20, 50)
    },
    "parameters": {
        count: UpdateAlone(f"{count} arrays", count, 1_000_000 // count, 20, WARM)
        for count in (40, 100, 400)
    },
    "convnet": {count: Convnet(count, 20, WARM) for count in (2, 5, 20)},
    "encoder": {count: Encoder(count, 5, WARM) for count in (2, 6, 12, 30)},
}


def recurrent(name):
    """A recurrent network by its name: the cell, and units, batch and length, "LSTM 128-32-64"."""
    cell, _, sizes = name.partition(" ")
    units, batch, length = map(int, sizes.split("-"))
    # So many updates that a block takes about as long for all of them.
    updates = max(2, int(8e9 / (units**2 * batch * length * 4 + 4e6)))
    return LanguageModel(min(updates, 200), WARM, cell, units, length=length, batch=batch)


def rung_of(name):
    """What a name stands for."""
    what, _, size = name.partition(" ")
    if name in OPERATIONS:
        return OPERATIONS[name]
    if "-" in size:
        return recurrent(name)
    if what == "deep":
        what, _, size = size.partition(" ")
        return DEPTH[what][int(size)]
    if size:
        return GROWTH[what][int(size)]
    return FRESH[name].network if name in FRESH else RUNGS[name]
