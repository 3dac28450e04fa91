"""Passes through a Parquet file of 10 million rows and 20 columns, by several readers.

    python -m tests.benchmarks.streaming [--rows N] [--rounds N] [--folder PATH]

The file has 19 features and a target of float32, in row groups of 65,536 rows. Readers take turns,
each in a process of its own that passes through the file once: pyarrow's batches as its functions
give them, and with the settings that this library gives it; this library's shuffled minibatches of
1,000 rows, without and with reading ahead; and torch's DataLoader over an IterableDataset that
shuffles in windows too, without and with a worker. Printed are the medians of rows a second, of
their ratios to pyarrow's round by round, and of the memory that the pass adds to that of a process
in which the same reader has read a file of 1,000 rows. Behind that stands what shuffling does: how
far samples move, and how many row groups meet in a minibatch.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from downhill_rms import Dataset
from downhill_rms.data import InputSpec
from downhill_rms.data.parquet import BUFFER, PART
from tests.benchmarks.contest import spread
from tests.benchmarks.hardware import processor

COLUMNS = [*(f"x{i}" for i in range(19)), "y"]
SPECS = [InputSpec("x", "float32", 2), InputSpec("y", "float32", 1)]
GROUP = 1 << 16  # rows in a row group
BATCH = 1000
PAGE = 4096


def write(path, rows):
    """A file whose last column is the number of its row, as far as float32 holds it."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    rng, writer = np.random.default_rng(0), None
    for first in range(0, rows, GROUP):
        count = min(GROUP, rows - first)
        values = {name: rng.standard_normal(count, dtype="float32") for name in COLUMNS}
        values["y"] = np.arange(first, first + count, dtype="float32")
        table = pa.table(values)
        writer = writer or ParquetWriter(path, table.schema)
        writer.write_table(table, row_group_size=GROUP)
    writer.close()


def pyarrow_file(path):
    """``ParquetFile.iter_batches()`` as it comes."""
    from pyarrow.parquet import ParquetFile

    return (batch.num_rows for batch in ParquetFile(path).iter_batches())


def pyarrow_dataset(path):
    """``dataset(path).to_batches()`` as it comes."""
    from pyarrow import dataset

    return (batch.num_rows for batch in dataset.dataset(path).to_batches())


def pyarrow_tuned(path):
    """``iter_batches`` with the settings that this library gives it."""
    from pyarrow.parquet import ParquetFile

    file = ParquetFile(path, pre_buffer=False, buffer_size=BUFFER)
    return (batch.num_rows for batch in file.iter_batches(PART))


def pyarrow_small(path):
    """The same in batches of as many rows as the minibatches have."""
    from pyarrow.parquet import ParquetFile

    file = ParquetFile(path, pre_buffer=False, buffer_size=BUFFER)
    return (batch.num_rows for batch in file.iter_batches(BATCH))


def ours(path, prefetch=0):
    """This library's minibatches."""
    data = Dataset(path, batch_size=BATCH, rng=0, prefetch=prefetch)
    return (len(y) for (_, y), _ in data.bind(SPECS).epoch())


def ours_ahead(path):
    """The same, with a thread that reads the next window."""
    return ours(path, prefetch=1)


def torch_loader(path, workers=0):
    """Torch's DataLoader over batches that a data set has shuffled in windows."""
    import torch
    from pyarrow.parquet import ParquetFile

    window = Dataset(path).source.window // GROUP  # in row groups

    class Windows(torch.utils.data.IterableDataset):
        def __iter__(self):
            file, rng = ParquetFile(path, pre_buffer=False), np.random.default_rng(0)
            groups = rng.permutation(file.num_row_groups)
            rest = np.empty((0, len(COLUMNS)), "float32")
            for first in range(0, len(groups), window):
                table = file.read_row_groups(groups[first : first + window].tolist())
                rows = np.stack([column.to_numpy() for column in table.columns], axis=1)
                rows = np.concatenate([rest, rows])
                rows = rows.take(rng.permutation(len(rows)), axis=0)
                whole = len(rows) // BATCH * BATCH
                for start in range(0, whole, BATCH):
                    batch = torch.from_numpy(rows[start : start + BATCH])
                    yield batch[:, :-1].contiguous(), batch[:, -1].contiguous()
                rest = rows[whole:]
            if len(rest):
                batch = torch.from_numpy(rest)
                yield batch[:, :-1].contiguous(), batch[:, -1].contiguous()

    loader = torch.utils.data.DataLoader(Windows(), batch_size=None, num_workers=workers)
    return (len(y) for _, y in loader)


def torch_worker(path):
    """The same with a process that reads."""
    return torch_loader(path, workers=1)


READERS = {
    "pyarrow, iter_batches()": pyarrow_file,
    "pyarrow, to_batches()": pyarrow_dataset,
    "pyarrow, our settings": pyarrow_tuned,
    "pyarrow, our settings, 1,000 rows": pyarrow_small,
    "downhill_rms": ours,
    "downhill_rms, prefetch=1": ours_ahead,
    "torch": torch_loader,
    "torch, one worker": torch_worker,
}


def resident():
    """Bytes in memory of this process and of its children."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return sum(_resident(process) for process in ("self", *children))


def _resident(process):
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * PAGE
    except (OSError, IndexError):  # it has ended
        return 0


class Highest(threading.Thread):
    """The most memory that the process has while a block runs, looked at every 5 ms."""

    def __init__(self):
        super().__init__(daemon=True)
        self.bytes, self.done = resident(), threading.Event()

    def run(self):
        """Look until the block ends."""
        while not self.done.wait(0.005):
            self.bytes = max(self.bytes, resident())

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.join()


def one_pass(name, small, path):
    """Rows, seconds and bytes of a pass, in this process."""
    reader = READERS[name]
    assert sum(reader(small)) == BATCH  # imports, threads and what else is needed once
    before = resident()
    with Highest() as highest:
        started = time.perf_counter()
        rows = sum(reader(path))
        seconds = time.perf_counter() - started
    return {"rows": rows, "seconds": seconds, "bytes": highest.bytes - before}


def in_a_process(name, small, path):
    """The same in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.streaming", "--one", name, small, path]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def shuffling(path, rows):
    """How far samples move in a pass, in rows, and the row groups that meet in a minibatch."""
    data = Dataset(path, batch_size=BATCH, rng=0)
    bound = data.bind([InputSpec("y", "float32", 1)])
    batches = [y.astype("int64") for (y,), _ in bound.epoch()]
    order = np.concatenate(batches)
    moved = np.abs(order - np.arange(rows))
    groups = [len(np.unique(batch // GROUP)) for batch in batches]
    return data.sampler.window, moved, groups


def main():
    """Write the file, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", type=Path, help="where the file is written (a temporary one)")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one_pass(*given.one)))
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        small, path = f"{folder}/small.parquet", f"{folder}/large.parquet"
        write(small, BATCH)
        write(path, given.rows)
        size = Path(path).stat().st_size / 1e6
        print(f"{processor()}; {given.rows:,} rows, {len(COLUMNS)} columns, {size:,.0f} MB")
        found = {name: [] for name in READERS}
        for turn in range(given.rounds + 1):
            for name in READERS:
                result = in_a_process(name, small, path)
                assert result["rows"] == given.rows, name
                if turn:  # in the first the file comes into the system's memory
                    found[name].append(result)
        seconds = {name: [r["seconds"] for r in results] for name, results in found.items()}
        for name, results in found.items():
            speed = given.rows / statistics.median(seconds[name]) / 1e6
            memory = statistics.median(result["bytes"] for result in results) / 1e6
            print(f"{name:<34} {speed:6.2f} million rows/s  {memory:6.0f} MB more")
        for name in list(READERS)[4:]:
            for peer in list(READERS)[:4]:
                pairs = zip(seconds[peer], seconds[name], strict=True)
                low, middle, high = spread([theirs / own for theirs, own in pairs])
                print(f"{name}: {middle:.2f} of {peer} ({low:.2f} to {high:.2f})")
        window, moved, groups = shuffling(path, given.rows)
        print(f"window {window:,} rows; a sample moves {moved.mean():,.0f} rows in the mean,")
        print(f"{moved.max():,} at most; of all rows anywhere: {given.rows / 3:,.0f} in the mean")
        print(f"row groups in a minibatch: {min(groups)} to {max(groups)}, in the mean ", end="")
        print(f"{statistics.mean(groups):.1f}")


if __name__ == "__main__":
    main()
