"""Learn to write, letter by letter, by attention: a small causal transformer.

A. Vaswani et al., Attention Is All You Need, arXiv:1706.03762 (2017), with the normalisation
before each part instead of after it: R. Xiong et al., On Layer Normalization in the Transformer
Architecture, arXiv:2002.04745 (2020). The text is that of ``text.py``, a tenth held out.

    downhill-rms train examples/transformer.py
    python examples/transformer.py
"""

import logging
from pydoc_data.topics import topics

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.tensor.special import log_softmax, softmax

import downhill_rms

LENGTH, UNITS, HEADS, LAYERS = 64, 96, 4, 2  # letters that are seen at once, and the network
BATCH, EPOCHS, SEED = 32, 20, 1


def load():
    """The alphabet, and the text as indices into it: Python's manual, each paragraph once."""
    paragraphs = (p for topic in sorted(topics) for p in topics[topic].split("\n\n"))
    text = "\n\n".join(dict.fromkeys(p.strip("\n") for p in paragraphs))
    alphabet, codes = np.unique(list(text), return_inverse=True)
    return alphabet, codes.astype("int32")


def windows(codes):
    """Rows of LENGTH letters that follow one another, and of the letters that come next."""
    rows = (len(codes) - 1) // LENGTH
    return [codes[i : i + rows * LENGTH].reshape(rows, LENGTH) for i in (0, 1)]


def normalised(h, scale, shift):
    """Layer normalisation: the units of each place get mean 0 and variance 1."""
    centred = h - h.mean(axis=-1, keepdims=True)
    variance = pt.sqr(centred).mean(axis=-1, keepdims=True)
    return centred / pt.sqrt(variance + np.float32(1e-5)) * scale + shift


def attention(query, key, value, heads=HEADS):
    """Equation 1: what each place gathers from itself and those before it, in each head.

    The three, and what is returned, have the shape (samples, places, units); a head has its own
    part of the units.
    """
    samples, places, units = query.shape

    def parts(h):
        return h.reshape((samples, places, heads, units // heads)).dimshuffle(0, 2, 1, 3)

    size = (units // heads).astype("float32")  # divided by an integer, scores would be float64
    scores = parts(query) @ parts(key).dimshuffle(0, 1, 3, 2) / pt.sqrt(size)
    seen = pt.arange(places)[:, None] >= pt.arange(places)
    weights = softmax(pt.where(seen, scores, -np.inf), axis=-1)
    return (weights @ parts(value)).dimshuffle(0, 2, 1, 3).reshape((samples, places, units))


def network(rng, characters):
    """Letters, (samples, LENGTH), and the log-probability of each letter to come next."""

    def weights(rows, columns, name):
        values = rng.standard_normal((rows, columns)) / np.sqrt(rows)
        return pytensor.shared(values.astype("float32"), name=name)

    def vector(size, name, value=0):
        return pytensor.shared(np.full(size, value, "float32"), name=name)

    def norm(h, name):
        return normalised(h, vector(UNITS, f"scale_{name}", 1), vector(UNITS, f"shift_{name}"))

    x = pt.imatrix("x")
    h = weights(characters, UNITS, "letters")[x] + weights(LENGTH, UNITS, "places")
    for layer in range(LAYERS):
        before = norm(h, f"{layer}_attention")
        query, key, value = (before @ weights(UNITS, UNITS, f"w{layer}_{n}") for n in "qkv")
        h = h + attention(query, key, value) @ weights(UNITS, UNITS, f"w{layer}_o")
        hidden = norm(h, f"{layer}_hidden") @ weights(UNITS, 4 * UNITS, f"w{layer}_hidden")
        hidden = pt.maximum(hidden + vector(4 * UNITS, f"b{layer}_hidden"), 0)
        h = h + hidden @ weights(4 * UNITS, UNITS, f"w{layer}_out") + vector(UNITS, f"b{layer}_out")
    scores = norm(h, "out") @ weights(UNITS, characters, "w_out") + vector(characters, "b_out")
    return x, log_softmax(scores, axis=-1)


def learning(x, log_probability, codes):
    """What is minimised, on which data and how."""
    y = pt.imatrix("y")
    each = log_probability.reshape((-1, log_probability.shape[-1]))
    loss = -each[pt.arange(y.size), y.flatten()].mean()
    held_out = len(codes) // 10
    train, valid = windows(codes[:-held_out]), windows(codes[-held_out:])
    updates = EPOCHS * -(-len(train[0]) // BATCH)
    return downhill_rms.Problem(
        loss=loss,
        inputs=[x, y],
        monitors={"bits": loss / np.float32(np.log(2))},
        train=train,
        valid=valid,
        hyperparameters={
            # Without a warm-up: normalised before each part, the first gradients are small.
            "learning_rate": downhill_rms.schedules.cosine(2e-3, updates),
            "rms_halflife": 69,
            "rms_regularizer": 1e-8,
            "max_global_norm": 1,
            "weight_decay": 1,  # or else it learns the text by heart
            "decoupled_weight_decay": True,
        },
        options={"batch_size": BATCH, "validate_every": 1, "max_epochs": EPOCHS},
    )


def problem(seed=SEED):
    """All that the command line needs."""
    alphabet, codes = load()
    return learning(*network(np.random.default_rng(seed), len(alphabet)), codes)


def write(function, alphabet, count, seed=SEED):
    """Draw letters one after the other, each from what is expected after those before it."""
    rng, written = np.random.default_rng(seed), [0]
    for _ in range(count):
        seen = written[-LENGTH:]
        padded = seen + [0] * (LENGTH - len(seen))  # no place sees those after it
        expected = function(np.array([padded], "int32"))[0, len(seen) - 1]
        written.append(int(np.argmax(expected + rng.gumbel(size=len(expected)))))
    return "".join(alphabet[written[1:]])


def main():
    """Train, and show what the network expects and writes."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    alphabet, codes = load()
    x, log_probability = network(np.random.default_rng(SEED), len(alphabet))
    task = learning(x, log_probability, codes)
    trainer = downhill_rms.Trainer(task.loss, inputs=task.inputs, monitors=task.monitors)
    trainer.minimize(task.train, task.valid, seed=SEED, **task.options, **task.hyperparameters)
    print(f"{trainer.best.monitors['bits']:.3f} bits per letter after epoch {trainer.best.epoch}")
    function = pytensor.function([x], log_probability, mode="FAST_COMPILE")
    print(f"--\n{write(function, alphabet, 300)}\n--")


if __name__ == "__main__":
    main()
