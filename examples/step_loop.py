"""A training loop of one's own, update by update: PuzzleLib's example.

16 samples of 128 numbers, 100 updates, the error every 5. Give ``--mode JAX`` to run the same
loop on a GPU where JAX has one.

    python examples/step_loop.py
"""

import argparse

import numpy as np
import pytensor
import pytensor.tensor as pt

from downhill_rms import Trainer, preset


def main():
    """Make 100 updates and print the error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mode", help="how PyTensor compiles, for example JAX")
    mode = parser.parse_args().mode

    rng = np.random.default_rng(0)
    data = rng.standard_normal((16, 128)).astype("float32")
    target = rng.standard_normal((16, 1)).astype("float32")

    x, y = pt.fmatrix("x"), pt.fmatrix("y")
    w1 = pytensor.shared((rng.standard_normal((128, 32)) / 12).astype("float32"), name="w1")
    w2 = pytensor.shared((rng.standard_normal((32, 1)) / 6).astype("float32"), name="w2")
    error = pt.sqr(pt.tanh(x @ w1) @ w2 - y).mean()

    # One trainer holds the state of all parameters.
    trainer = Trainer(error, inputs=[x, y], mode=mode)
    optimizer = preset("puzzlelib", learnRate=0.001, factor=0.9)
    for i in range(100):
        result = trainer.step([data, target], **optimizer)
        if (i + 1) % 5 == 0:
            print(f"Iteration #{i + 1} error: {result['loss']:.6f}")


if __name__ == "__main__":
    main()
