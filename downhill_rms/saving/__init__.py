"""Saving: states as bytes on disk, and the directory that holds them.

A state is a flat dict of named arrays and plain values; what they mean is ``training``'s business.
It imports no other room. Open ``checkpoint.py`` first.
"""

from downhill_rms.saving.checkpoint import Checkpoint, as_checkpoint
from downhill_rms.saving.journal import read_checkpoint
from downhill_rms.saving.statefile import CheckpointError, read_state, write_state

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "as_checkpoint",
    "read_checkpoint",
    "read_state",
    "write_state",
]
