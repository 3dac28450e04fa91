"""Write the checkpoint that every later release must load: ``state-format-2.npz``.

None is ever written again. A new format gets a file of its own.

    python -m tests.goldens.make_state
"""

from pathlib import Path

from downhill_rms.saving.statefile import FORMAT, write_state
from tests.training.test_assigned import make
from tests.training.test_resume import OPTIONS, data

FILE = Path(__file__).parent / f"state-format-{FORMAT}.npz"


def main():
    """Save a run after two of its three epochs."""
    if FILE.exists():
        raise SystemExit(f"{FILE.name} is there, and is never written again")
    trainer = make("FAST_COMPILE")
    for _ in trainer.iterate(data(), **OPTIONS):
        if trainer.epoch_count == 2:
            write_state(FILE, trainer.state_dict())
            break


if __name__ == "__main__":
    main()
