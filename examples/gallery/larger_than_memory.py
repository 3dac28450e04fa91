"""
Data larger than memory
=======================

A memory map stands for data that do not fit: the trainer reads a window at a time, shuffles it, and
a thread reads the next one meanwhile. Parquet files and folders, zarr and HDF5 work in the same way
(:doc:`/larger_than_memory`).
"""

import itertools
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytensor
import pytensor.tensor as pt

import downhill_rms as dr

ROWS = 20_000

# %%
# The file is sorted, as files usually are: by its first column, from -2 to 2.
rng = np.random.default_rng(0)
path = Path(tempfile.mkdtemp()) / "rows.npy"
file = np.lib.format.open_memmap(path, "w+", "float32", (ROWS, 4))
file[:, 0] = np.linspace(-2, 2, ROWS)
file[:, 1:3] = rng.normal(size=(ROWS, 2))
file[:, 3] = file[:, :3] @ [0.5, -1.0, 2.0] + 1 + 0.1 * rng.normal(size=ROWS)
file.flush()

rows = np.load(path, mmap_mode="r")
data = dr.Dataset([rows], "rows", 100, window=2000, rng=0, prefetch=1)
print(data)

# %%
# One input takes the rows as they are; the graph takes them apart.
row = pt.fmatrix("row")
w = pytensor.shared(np.zeros(3, "float32"), name="w")
b = pytensor.shared(np.float32(0), name="b")
loss = pt.sqr(row[:, :3] @ w + b - row[:, 3]).mean()
trainer = dr.Trainer(loss, inputs=[row], params=[w, b])
trainer.minimize(
    data, [rows[::20]], learning_rate=dr.schedules.inverse_sqrt(0.02, 100), max_epochs=5
)
print("w =", w.get_value().round(2), "b =", b.get_value().round(2))

# %%
# How well a window mixes: the first column of the first minibatches. From a file that is read in
# order each of them would hold one value.
fig, ax = plt.subplots()
shuffled = dr.Dataset([rows], batch_size=100, window=2000, rng=0)
for number, (batch, *_) in enumerate(itertools.islice(shuffled, 20)):
    ax.plot(np.full(100, number), batch[:, 0], ".", markersize=2, color="C0")
ax.set_xlabel("minibatch")
ax.set_ylabel("first column")
plt.show()
