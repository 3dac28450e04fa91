"""Write the checkpoint that every later release must load: ``state-format-1.npz``.

It is never written again. A new format gets a file of its own.

    python -m tests.goldens.make_state
"""

from pathlib import Path

from downhill_rms.saving.statefile import write_state
from tests.training.test_resume import OPTIONS, data, make

FILE = Path(__file__).parent / "state-format-1.npz"


def main():
    """Save a run after two of its three epochs."""
    trainer = make("FAST_COMPILE")
    for _ in trainer.iterate(data(), **OPTIONS):
        if trainer.epoch_count == 2:
            write_state(FILE, trainer.state_dict())
            break


if __name__ == "__main__":
    main()
