"""Many devices and many processes: the same training on JAX's distributed runtime.

Every process runs the same program. A minibatch is divided among the devices, parameters are
copies on each, or divided too where they are large, and XLA inserts the messages. The rooms below
know nothing of it: what is here takes the place of ``training.Placement``, and may import
``training``, ``compiling``, ``data``, ``saving`` and ``rule``. JAX is imported when a placement is
made, and never with the package. Open ``mesh.py`` first.
"""

from downhill_rms.parallel.mesh import make_placement
from downhill_rms.parallel.processes import (
    Failure,
    LostProcessesError,
    end_if_others_wait,
    exit_code,
    from_leader,
    initialize,
    is_one_of_several,
    refuse_without_jax,
    run_processes,
)

__all__ = [
    "Failure",
    "LostProcessesError",
    "end_if_others_wait",
    "exit_code",
    "from_leader",
    "initialize",
    "is_one_of_several",
    "make_placement",
    "refuse_without_jax",
    "run_processes",
]
