"""Let two processes race for one checkpoint directory.

In every race both open the directory at once. One must hold it; the other must be refused with the
holder's process id, and what the holder writes must load.

    python -m tests.reliability.races --races 50
"""

import argparse
import os
import re
import sys
import tempfile
import time
from pathlib import Path

from downhill_rms import Checkpoint
from downhill_rms.saving.statefile import CheckpointError, read_state

HELD, REFUSED, WRONG = 0, 3, 4  # exit codes


def contend(directory, start):
    """Open the directory at an instant and hold it for a while."""
    while time.monotonic() < start:
        pass
    checkpoint = Checkpoint(directory)
    try:
        checkpoint.open()
    except CheckpointError as error:
        named = re.search(r"is held by process (\d+):", str(error))
        if named:
            directory.with_suffix(".named").write_text(named[1])
        return REFUSED if named else WRONG
    time.sleep(0.2)
    checkpoint.save({"holder": os.getpid()}, 1)
    return HELD


def race(directory):
    """Whether one of two processes was refused, and whether the other's file is whole."""
    start = time.monotonic() + 0.05
    processes = []
    for _ in range(2):
        process = os.fork()
        if not process:
            code = WRONG
            try:
                code = contend(directory, start)
            finally:
                os._exit(code)
        processes.append(process)
    codes = {p: os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) for p in processes}
    refused = sorted(codes.values()) == [HELD, REFUSED]
    if refused:
        refused = codes.get(int(directory.with_suffix(".named").read_text())) == HELD
    whole = refused and codes[read_state(directory / "step-000000001.npz")["holder"]] == HELD
    return refused, whole


def run(directory, races):
    """How many second processes were refused, and how many files are whole."""
    results = [race(directory / str(number)) for number in range(races)]
    return sum(refused for refused, _ in results), sum(whole for _, whole in results)


def main():
    """Print the counts; exit with 1 if a race went wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--races", type=int, default=50)
    races = parser.parse_args().races
    with tempfile.TemporaryDirectory() as directory:
        refused, whole = run(Path(directory), races)
    print(f"races: the second refused {refused} of {races}, files whole {whole} of {races}")
    sys.exit(min(refused, whole) < races)


if __name__ == "__main__":
    main()
