"""PyMC: a model becomes a `Problem`, by its mode or by a variational approximation.

It needs PyMC (extra ``pymc``), and nothing else of the package imports it. It may import everything
but ``command``. Open ``problems.py`` first.
"""

from downhill_rms.pymc.problems import (
    AdviProblem,
    ModelProblem,
    advi_problem,
    map_problem,
)

__all__ = ["AdviProblem", "ModelProblem", "advi_problem", "map_problem"]
