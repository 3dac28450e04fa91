"""Data larger than memory: a regression on a folder of Parquet files, a window at a time.

It writes some files of flights that are sorted by day, as such files usually are, and trains on the
folder: row groups come in random order, rows are shuffled in a window, and only windows are in
memory. A second run goes on where the first was left, in the middle of a pass.

    python examples/streaming.py [--rows 200000] [--directory runs/streaming]
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytensor
import pytensor.tensor as pt

import downhill_rms

FILES = 4
SLOPES = np.array([0.5, -1.0, 2.0])


def write(folder, rows):
    """Parquet files with columns x0, x1, x2 and y, the days behind each other."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number, days in enumerate(np.array_split(np.linspace(-2, 2, rows), FILES)):
        x = rng.standard_normal((len(days), 3)).astype("float32")
        x[:, 0] = days
        noise = 0.1 * rng.standard_normal(len(days))
        columns = {f"x{i}": x[:, i] for i in range(3)}
        columns |= {"y": (x @ SLOPES + 1 + noise).astype("float32")}
        # Row groups far smaller than a window: many of them meet in each.
        path = folder / f"flights-{number}.parquet"
        pq.write_table(pa.table(columns), path, row_group_size=max(rows // 200, 1))


def make_trainer():
    """A linear regression, whose inputs have the names of the columns."""
    x, y = pt.fmatrix("x"), pt.fvector("y")
    w = pytensor.shared(np.zeros(3, "float32"), name="w")
    b = pytensor.shared(np.float32(0), name="b")
    loss = pt.sqr(x @ w + b - y).mean()
    return downhill_rms.Trainer(loss, params=[w, b], inputs=[x, y])


def main():
    """Train in two runs, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--directory", type=Path, default=Path("runs/streaming"))
    given = parser.parse_args()
    folder = given.directory / "flights"
    write(folder, given.rows)

    for updates in (given.rows // 150, given.rows // 100):  # a pass and a third, and two passes
        window = given.rows // 10
        data = downhill_rms.Dataset(folder, "flights", 100, window=window, rng=0, prefetch=1)
        trainer = make_trainer()
        trainer.minimize(
            data,
            folder / "flights-0.parquet",
            max_updates=updates,
            learning_rate=downhill_rms.schedules.inverse_sqrt(0.01, 100),
            checkpoint=given.directory / "checkpoints",
            resume=True,
        )
        print(f"after {trainer.update_count} updates of {data}")
        print(trainer)
    w, b = (value.get_value() for value in trainer.graph.params)
    print(f"w = {w.round(2)}, b = {b.round(2)}")


if __name__ == "__main__":
    main()
