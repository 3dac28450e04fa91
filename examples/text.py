"""Learn to write, letter by letter: Graves' LSTM with peepholes, and the rule that he published.

A. Graves, Generating Sequences With Recurrent Neural Networks, arXiv:1308.0850 (2013). The text is
what Python's ``help`` knows, so that every Python has it: 380 kB of English, a tenth held out.

    downhill-rms train examples/text.py
    python examples/text.py
    python examples/text.py --text book.txt --directory runs/book
"""

import argparse
import logging
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.tensor.special import log_softmax

import downhill_rms

ROWS, LENGTH = 32, 64  # streams of text beside each other, and letters that gradients go back
GATES = "ifco"
CLIP = {"max_gradient_elem": 10}  # elementwise, as in the paper


def python_help():
    """Python's own manual, each paragraph once: what is held out repeats nothing before it."""
    paragraphs = (p for topic in sorted(topics) for p in topics[topic].split("\n\n"))
    return "\n\n".join(dict.fromkeys(p.strip("\n") for p in paragraphs))


class Writer:
    """A network that reads letters and foretells the next one, with its parameters.

    Parameters
    ----------
    alphabet : list of str
        The letters.
    units : int
        LSTM cells.
    seed : int
        Of the first weights.
    """

    def __init__(self, alphabet, units=128, seed=0):
        rng = np.random.default_rng(seed)

        def shared(name, *shape):
            values = rng.normal(0, 0.1, shape) if len(shape) == 2 else np.zeros(shape)
            return pytensor.shared(values.astype("float32"), name=name)

        self.alphabet, self.units = alphabet, units
        self.x = {gate: shared(f"W_x{gate}", len(alphabet), units) for gate in GATES}
        self.h = {gate: shared(f"W_h{gate}", units, units) for gate in GATES}
        self.c = {gate: shared(f"W_c{gate}", units) for gate in "ifo"}  # the peepholes
        self.b = {gate: shared(f"b_{gate}", units) for gate in GATES}
        self.y, self.b_y = shared("W_hy", units, len(alphabet)), shared("b_y", len(alphabet))

    def driven(self, letters):
        """What letters give each gate: a one-hot vector times a matrix is a row of it."""
        return [self.x[gate][letters] + self.b[gate] for gate in GATES]

    def step(self, x_i, x_f, x_c, x_o, h, c):
        """Equations 7 to 11: the next hidden values and cells."""
        i = pt.sigmoid(x_i + h @ self.h["i"] + self.c["i"] * c)
        f = pt.sigmoid(x_f + h @ self.h["f"] + self.c["f"] * c)
        c = f * c + i * pt.tanh(x_c + h @ self.h["c"])
        o = pt.sigmoid(x_o + h @ self.h["o"] + self.c["o"] * c)
        return [o * pt.tanh(c), c]

    def log_probability(self, h):
        """That of each letter to come next."""
        return log_softmax(h @ self.y + self.b_y, axis=-1)

    def write(self, count, seed):
        """Draw letters one after the other, each from what is expected after the last."""
        last, h_0, c_0 = pt.iscalar(), pt.fvector(), pt.fvector()
        h_1, c_1 = self.step(*self.driven(last), h_0, c_0)
        outputs = [self.log_probability(h_1), h_1, c_1]
        function = pytensor.function([last, h_0, c_0], outputs, mode="FAST_COMPILE")
        rng, letter, written = np.random.default_rng(seed), 0, ""
        h = c = np.zeros(self.units, dtype="float32")
        for _ in range(count):
            expected, h, c = function(np.int32(letter), h, c)
            letter = np.argmax(expected + rng.gumbel(size=len(expected)))
            written += self.alphabet[letter]
        return written


def learning(writer, text):
    """What is minimised, on which data and how."""
    codes = np.searchsorted(writer.alphabet, list(text)).astype("int32")
    held_out = len(codes) // 10
    x, y = pt.imatrix("x"), pt.imatrix("y")  # letters and those that follow: (steps, rows)
    start = np.zeros((ROWS, writer.units), dtype="float32")
    h_0, c_0 = pytensor.shared(start, name="h"), pytensor.shared(start, name="c")
    h, c = pytensor.scan(
        writer.step, sequences=writer.driven(x), outputs_info=[h_0, c_0], return_updates=False
    )
    expected = writer.log_probability(h).reshape((-1, len(writer.alphabet)))
    nats = -expected[pt.arange(y.size), y.flatten()].mean()
    return downhill_rms.Problem(
        loss=LENGTH * nats,  # summed over time, as Graves' rule has it
        inputs=[x, y],
        carried={h_0: h[-1], c_0: c[-1]},  # a minibatch goes on where the one before ended
        monitors={"bits": nats / np.log(2)},
        train=downhill_rms.sequences(codes[:-held_out], LENGTH, ROWS, name="train"),
        valid=downhill_rms.sequences(codes[-held_out:], LENGTH, ROWS, name="valid"),
        hyperparameters={**downhill_rms.preset("graves", learning_rate=1e-3), **CLIP},
        options={"monitor": "bits", "validate_every": 1, "max_epochs": 15},
    )


def problem(seed=0):
    """All that the command line needs."""
    text = python_help()
    return learning(Writer(sorted(set(text)), seed=seed), text)


def main():
    """Train, and show what the network writes as it learns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, metavar="FILE", help="another text, in UTF-8")
    parser.add_argument("--units", type=int, default=128, help="LSTM cells")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--directory", help="where the run is kept, and goes on if it was stopped")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    text = given.text.read_text(encoding="utf-8") if given.text else python_help()
    writer = Writer(sorted(set(text)), given.units)
    task = learning(writer, text)
    trainer = downhill_rms.Trainer(
        task.loss, inputs=task.inputs, monitors=task.monitors, carried=task.carried
    )
    options = {**task.hyperparameters, **task.options, "max_epochs": given.epochs}
    trainer.minimize(
        *(task.train, task.valid),
        **options,
        run_directory=given.directory,
        resume=given.directory is not None,
        observers=[lambda record: print(f"--\n{writer.write(200, record.epoch)}\n--")],
    )
    print(f"{trainer.best.monitors['bits']:.3f} bits per letter after epoch {trainer.best.epoch}")


if __name__ == "__main__":
    main()
