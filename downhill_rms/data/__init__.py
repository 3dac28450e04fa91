"""The data: whatever holds samples becomes minibatches.

Here stand data sets, the sources behind them, those that are read by windows (``streaming``,
``parquet``), the order in which samples are visited, and data files that are read as a whole
(``datafiles``). It imports no other room. Open ``dataset.py`` first.
"""

from downhill_rms.data.dataset import BoundDataset, Dataset, as_dataset
from downhill_rms.data.generators import generator_state, set_generator_state
from downhill_rms.data.sampler import order_faults
from downhill_rms.data.scalars import ScalarColumn, now
from downhill_rms.data.scan import first_infinite, parts
from downhill_rms.data.sequences import sequences
from downhill_rms.data.sources import (
    ArraySource,
    Batch,
    Inputs,
    InputSpec,
    Selection,
    by_input,
    conform,
)

__all__ = [
    "ArraySource",
    "Batch",
    "BoundDataset",
    "Dataset",
    "InputSpec",
    "Inputs",
    "ScalarColumn",
    "Selection",
    "as_dataset",
    "by_input",
    "conform",
    "first_infinite",
    "generator_state",
    "now",
    "order_faults",
    "parts",
    "sequences",
    "set_generator_state",
]
