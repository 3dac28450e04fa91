"""Compiling: from expressions to functions of a minibatch, and how fast they get and are.

Here stand functions that compile themselves at first use, that never do, or that do in a child
process; the rewrites of recurrent networks before gradients are taken, and of the graph that Numba
compiles; and what is known of the machine. It may import ``rule``. Open ``compiled.py`` first.
"""

from downhill_rms.compiling.background import ALONE_SECONDS, compile_alone
from downhill_rms.compiling.building import quick_building
from downhill_rms.compiling.compiled import CompiledFunction, check_mode
from downhill_rms.compiling.machine import findings
from downhill_rms.compiling.modes import (
    TIERED,
    computing,
    default_mode,
    is_compiled,
    is_jax,
    pytensor_mode,
)
from downhill_rms.compiling.recurrent import prepare_scans
from downhill_rms.compiling.rehearsal import evaluator, rehearse
from downhill_rms.compiling.stacked import check_stackable, stack_steps
from downhill_rms.compiling.tiered import TieredFunction
from downhill_rms.compiling.uncompiled import UncompiledFunction

__all__ = [
    "ALONE_SECONDS",
    "TIERED",
    "CompiledFunction",
    "TieredFunction",
    "UncompiledFunction",
    "check_mode",
    "check_stackable",
    "compile_alone",
    "computing",
    "default_mode",
    "evaluator",
    "findings",
    "is_compiled",
    "is_jax",
    "prepare_scans",
    "pytensor_mode",
    "quick_building",
    "rehearse",
    "stack_steps",
]
