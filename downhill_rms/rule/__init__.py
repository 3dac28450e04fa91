"""The rule: from a loss graph to the expressions of RMSProp's updates.

Here stand the reading of a graph, gradients with their clips, hyperparameters, presets, the rule
itself and its telemetry. Everything is a PyTensor expression or a plain value: nothing compiles,
loops or touches data. It imports no other room. Open ``rmsprop.py`` first.
"""

from downhill_rms.rule.bounds import Conflict, Index, Reading, conflict_at, read_bounds
from downhill_rms.rule.checks import (
    check_choice,
    check_count,
    check_flag,
    check_list,
    check_number,
    check_path,
    shown,
)
from downhill_rms.rule.fingerprint import fingerprint, fingerprint_difference
from downhill_rms.rule.gradients import differentiate
from downhill_rms.rule.graph import (
    LossGraph,
    Update,
    read_graph,
    read_outputs,
    warn_of_outer_broadcast,
)
from downhill_rms.rule.hyperparameters import Hyperparameters
from downhill_rms.rule.keywords import refuse_unknown
from downhill_rms.rule.presets import is_graves, preset
from downhill_rms.rule.rmsprop import (
    KINDS,
    STARTED,
    State,
    needed_kinds,
    rmsprop_updates,
    scheduled,
)
from downhill_rms.rule.schedules import Schedule, parse_schedule
from downhill_rms.rule.standalone import updates
from downhill_rms.rule.suspects import warn_of_data, warn_of_suspects
from downhill_rms.rule.telemetry import telemetry_names, update_telemetry
from downhill_rms.rule.traversal import (
    describe,
    label,
    variables_in_order,
    warn,
    without_dimensions,
)

__all__ = [
    "KINDS",
    "STARTED",
    "Conflict",
    "Hyperparameters",
    "Index",
    "LossGraph",
    "Reading",
    "Schedule",
    "State",
    "Update",
    "check_choice",
    "check_count",
    "check_flag",
    "check_list",
    "check_number",
    "check_path",
    "conflict_at",
    "describe",
    "differentiate",
    "fingerprint",
    "fingerprint_difference",
    "is_graves",
    "label",
    "needed_kinds",
    "parse_schedule",
    "preset",
    "read_bounds",
    "read_graph",
    "read_outputs",
    "refuse_unknown",
    "rmsprop_updates",
    "scheduled",
    "shown",
    "telemetry_names",
    "update_telemetry",
    "updates",
    "variables_in_order",
    "warn",
    "warn_of_data",
    "warn_of_outer_broadcast",
    "warn_of_suspects",
    "without_dimensions",
]
