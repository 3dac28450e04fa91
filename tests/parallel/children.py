"""What the processes of a test in several processes do; ``run_processes`` starts them.

python -m tests.parallel.children NAME FOLDER --processes 2
"""

import argparse
import json
from pathlib import Path

import numpy as np

from downhill_rms import Checkpoint, Dataset, Trainer
from downhill_rms.parallel import initialize
from tests.distributed.program import arrays, regression


class Recorded:
    """Something on disk, which tells what of it is read."""

    def __init__(self, array):
        self._array = array
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim
        self.rows = set()

    def __len__(self):
        return len(self._array)

    def __getitem__(self, key):
        self.rows |= set(range(*key.indices(len(self._array))))
        return self._array[key]


def diverging(folder, process):
    """A loss that becomes infinite after some updates."""
    import pytensor
    import pytensor.tensor as pt

    x, w = pt.vector("x"), pytensor.shared(np.array(1.0), name="w")
    loss = pt.exp(pt.sqr(w * x)).mean()
    trainer = Trainer(loss, inputs=[x], devices="all")
    trainer.minimize([np.ones(16)], batch_size=4, learning_rate=100, max_epochs=100)
    return {"reason": trainer.stop_reason, "updates": trainer.update_count}


def failing(folder, process):
    """An error in one process, in the middle of an epoch."""
    trainer = regression("float64", devices="all")
    features, target = arrays("float64")
    calls = iter(range(1000))

    def batch():
        if next(calls) == 20 and process == 1:
            raise OSError("the disk of one host is gone")
        return features[:16], target[:16]

    checkpoint = Checkpoint(folder / "checkpoints", every_updates=4)
    valid = [features[:16], target[:16]]
    trainer.minimize(Dataset(batch, iteration_size=50), valid, checkpoint=checkpoint, max_epochs=9)
    return {}


def observed(folder, process):
    """An observer that ends the run in one process alone."""
    from downhill_rms import StopReason

    trainer = regression("float64", devices="all")

    def observe(record):
        return StopReason.OBSERVER if process == 1 and record.epoch == 3 else None

    trainer.minimize(list(arrays("float64")), observers=[observe], max_epochs=20, seed=0)
    return {"reason": trainer.stop_reason, "updates": trainer.update_count}


def starting(folder, process):
    """Each process has other parameters and another order, and all go on with the leader's."""
    import pytensor
    import pytensor.tensor as pt

    rng = np.random.default_rng()
    x, y = pt.matrix("x"), pt.vector("y")
    w = pytensor.shared(rng.normal(size=12), name="w")
    trainer = Trainer(pt.sqr(x @ w - y).mean(), inputs=[x, y], devices="all")
    start = trainer.parameters.copy()["w"].tolist()
    trainer.minimize(Dataset(list(arrays("float64")), batch_size=16), max_epochs=3)
    return {"start": start, "loss": trainer.history[-1].train["loss"]}


def reading(folder, process):
    """Each process reads its own samples alone."""
    trainer = regression("float64", devices="all")
    features, target = arrays("float64")
    own = Recorded(features[:96])
    train = Dataset([own, target[:96]], batch_size=16, shuffle=None)
    trainer.minimize(
        train, [features[:16], target[:16]], max_epochs=1, max_updates=6, restore_best=False
    )
    return {"rows": sorted(own.rows)}


def clocked(folder, process):
    """Checkpoints by the clock are at the same updates everywhere; a predicted array is whole."""
    trainer = regression("float64", devices="all")
    features, target = arrays("float64")
    checkpoint = Checkpoint(folder / "checkpoints", every_seconds=0.05, keep=1000)
    trainer.minimize([features, target], checkpoint=checkpoint, max_epochs=60, seed=0)
    found = checkpoint.latest()
    return {"saved": sorted(path.name for path in checkpoint.steps()), "latest": found[0].name}


def main():
    """Join the others, do it, and leave what it returned in a file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--processes", type=int)
    parser.add_argument("--coordinator")
    parser.add_argument("--process-id", type=int)
    options = parser.parse_args()
    initialize(options.coordinator, options.processes, options.process_id)
    found = globals()[options.name](options.folder, options.process_id)
    (options.folder / f"{options.name}-{options.process_id}").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
