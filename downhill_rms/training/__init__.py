"""Training: the loop over epochs and minibatches, and every way out of it.

Here stand the steps of one minibatch, the run that holds limits and progress, patience,
divergence, signals, and the state of it all. It joins ``rule``, ``data``, ``saving``,
``compiling`` and ``watching``, and may import each of them. Open ``loop.py`` first.
"""

from downhill_rms.training.divergence import Divergence
from downhill_rms.training.inspection import Inspection
from downhill_rms.training.loop import Loop
from downhill_rms.training.placement import Placement
from downhill_rms.training.prediction import Rows, named_outputs, predict
from downhill_rms.training.recording import Recording, checkpoint_in, in_json
from downhill_rms.training.run import Best, Run, check_rollback
from downhill_rms.training.signals import uninterrupted
from downhill_rms.training.steps import Steps
from downhill_rms.training.stopping import Patience, StopReason

__all__ = [
    "Best",
    "Divergence",
    "Inspection",
    "Loop",
    "Patience",
    "Placement",
    "Recording",
    "Rows",
    "Run",
    "Steps",
    "StopReason",
    "check_rollback",
    "checkpoint_in",
    "in_json",
    "named_outputs",
    "predict",
    "uninterrupted",
]
