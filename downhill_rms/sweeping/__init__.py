"""Sweeps: many runs of one model, with other numbers and other seeds, compiled once.

Here stand what is tried, the runs and the turns that they take, runs that go together, what a
sweep found, and the test of a learning rate's range. It drives ``training``'s loop and may import
every room below ``trainer``. Open ``sweep.py`` first.
"""

from downhill_rms.sweeping.manifest import SweepDirectoryError
from downhill_rms.sweeping.members import SweptRun
from downhill_rms.sweeping.ranges import loguniform, uniform
from downhill_rms.sweeping.rates import RateTest, find_rate
from downhill_rms.sweeping.results import Sweep
from downhill_rms.sweeping.sweep import sweep

__all__ = [
    "RateTest",
    "Sweep",
    "SweepDirectoryError",
    "SweptRun",
    "find_rate",
    "loguniform",
    "sweep",
    "uniform",
]
