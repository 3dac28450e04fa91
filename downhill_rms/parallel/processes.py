"""Several processes: how one joins the others, and how a host without accelerators starts them.

A process that fails leaves the others waiting in a message that never comes. So whatever nobody
catches ends a process at once, and JAX's heartbeat, or whoever started them, ends the others.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from types import FrameType, TracebackType
from typing import IO, Any

import numpy as np

HEARTBEAT = 10  # seconds without a word from a process after which the others end
TOGETHER = 5.0  # seconds after one process's end in which the others end by themselves
LOST = (
    75  # the exit code of a process that has lost the others, as sysexits.h has it for "try again"
)
ATTEMPTS = 5  # another program may take a port between our finding it and using it


class LostProcessesError(RuntimeError):
    """Other processes have ended, or cannot be reached: what was to be done together is not."""


def initialize(
    coordinator: str | None = None, processes: int | None = None, process_id: int | None = None
) -> None:
    """Join the other processes of a run; before anything else is done with JAX.

    Parameters
    ----------
    coordinator : str, optional
        ``HOST:PORT`` of process 0, the same in every process. Without it JAX looks for SLURM,
        MPI or a cloud TPU in the environment.
    processes : int, optional
        How many there are.
    process_id : int, optional
        Which of them this is, from 0.

    Notes
    -----
    It is ``jax.distributed.initialize`` with a heartbeat of 10 s (JAX's is 100), with gloo between
    processors without accelerators; and an exception that nobody catches ends the process at
    once, since the others wait for it.
    """
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        coordinator,
        processes,
        process_id,
        heartbeat_timeout_seconds=HEARTBEAT,
        shutdown_timeout_seconds=HEARTBEAT,
    )
    sys.excepthook = _print_and_end


def _print_and_end(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    traceback.print_exception(kind, error, trace)
    end_at_once(exit_code(error))


def exit_code(error: BaseException) -> int:
    """By which whoever started this process tells the one that failed from those that lost it."""
    return LOST if isinstance(error, LostProcessesError) else 1


def end_if_others_wait(code: int | None) -> None:
    """End this process at once if it is one of several: the others wait for it in vain."""
    if is_one_of_several():
        end_at_once(code or 0)


def end_at_once(code: int) -> None:
    """End this process without the words that JAX would exchange with the others."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def is_one_of_several() -> bool:
    """Whether this process has joined others."""
    if "jax" not in sys.modules:
        return False
    import jax

    return bool(jax.distributed.is_initialized()) and jax.process_count() > 1


def refuse_without_jax(what: str) -> None:
    """Raise an ImportError that says what needs JAX, where it is not installed."""
    if find_spec("jax") is None:
        raise ImportError(
            f"{what} is given, and JAX is not installed: it divides the work. Install the extra, "
            f"pip install 'downhill_rms[jax]', or leave {what} out."
        )


def from_leader(text: str) -> str:
    """The leading process's text, in every process; all ask at the same time."""
    if not is_one_of_several():
        return text
    import jax
    from jax.experimental.multihost_utils import broadcast_one_to_all

    encoded = np.frombuffer(text.encode(), "uint8")
    size = int(broadcast_one_to_all(np.int32(len(encoded))))
    if size == 0:
        return ""
    mine = encoded if jax.process_index() == 0 else np.zeros(size, "uint8")
    return np.asarray(broadcast_one_to_all(mine)).astype("uint8").tobytes().decode()


@dataclass(frozen=True)
class Failure:
    """How a process failed whose end was that of all.

    Attributes
    ----------
    process : int
        Which.
    code : int
        As ``subprocess`` tells it: below 0 the signal that killed it.
    error : str
        The end of what it printed, for one whose output is not shown.
    """

    process: int
    code: int
    error: str

    def __str__(self) -> str:
        if self.code < 0:
            return f"process {self.process} was ended by {signal.Signals(-self.code).name}"
        return f"process {self.process} failed (exit code {self.code})"


def run_processes(command: Sequence[str], count: int) -> tuple[int, Failure | None]:
    """Run a command in so many processes of this host, and wait for all.

    Each is given ``--coordinator``, ``--process-id`` and computes on the processor. Signals are
    handed on to all, once; if one process fails, all end.

    Parameters
    ----------
    command : sequence of str
        The command, without these options.
    count : int
        Processes.

    Returns
    -------
    code : int
        The exit code of the leading process.
    failure : Failure or None
        What has failed first, if not all ended in the same way.
    """
    for _ in range(ATTEMPTS):
        coordinator = f"127.0.0.1:{_free_port()}"
        code, failure = _run_once(command, count, coordinator)
        if failure is None or "address already in use" not in failure.error.lower():
            break
    return code, failure


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _run_once(command: Sequence[str], count: int, coordinator: str) -> tuple[int, Failure | None]:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    with contextlib.ExitStack() as stack:
        started: list[subprocess.Popen[Any]] = []
        outputs: list[IO[bytes]] = []
        stack.enter_context(_handed_on(started))
        for process in range(count):
            output: IO[bytes] = stack.enter_context(tempfile.TemporaryFile())
            outputs.append(output)
            joined = ["--coordinator", coordinator, "--process-id", str(process)]
            shown: Any = {} if process == 0 else {"stdout": output, "stderr": output}
            started.append(
                # A session of its own: Ctrl-C reaches this process alone, which hands it on.
                subprocess.Popen(
                    [*command, *joined], env=environment, start_new_session=True, **shown
                )
            )
        failed = _wait(started)
        code = started[0].returncode
        if failed is None:
            return code, None
        outputs[failed].seek(0)
        text = outputs[failed].read().decode(errors="replace").strip()
        return code, Failure(failed, started[failed].returncode, text[-2000:])


def _wait(started: Sequence[subprocess.Popen[Any]]) -> int | None:
    """Wait until all have ended; the first that failed, unless all ended in the same way."""
    first, deadline = None, float("inf")
    while any(process.poll() is None for process in started):
        ended = [i for i, process in enumerate(started) if process.returncode is not None]
        if ended and first is None:
            first, deadline = ended[0], time.monotonic() + TOGETHER
            if started[first].returncode == 0:
                deadline = float("inf")  # the others may have something left to do
        if any(started[i].returncode not in (0, started[ended[0]].returncode) for i in ended):
            deadline = min(deadline, time.monotonic() + TOGETHER)
        if time.monotonic() > deadline:
            for process in started:
                if process.poll() is None:
                    process.kill()
        time.sleep(0.05)
    return _blamed([process.returncode for process in started], first)


def _blamed(codes: Sequence[int], first: int | None) -> int | None:
    """Which process failed by itself, if they did not all end in the same way.

    JAX aborts a process whose others are gone. If this process slept meanwhile, it finds all of
    them ended, and which ended first is not known: so an abort is a failure of one's own only
    where nobody has another.
    """
    if len(set(codes)) == 1 and codes[0] != LOST:
        return None
    by_itself = [i for i, code in enumerate(codes) if code not in (0, LOST, -signal.SIGABRT)]
    aborted = [i for i, code in enumerate(codes) if code == -signal.SIGABRT]
    if first in by_itself:
        return first
    return next(iter([*by_itself, *aborted, *(i for i, code in enumerate(codes) if code)]))


@contextlib.contextmanager
def _handed_on(started: Sequence[subprocess.Popen[Any]]) -> Iterator[None]:
    """Hand Ctrl-C and SIGTERM on to the processes, while they run."""

    def hand_on(number: int, frame: FrameType | None) -> None:
        for process in started:
            if process.poll() is None:
                process.send_signal(number)

    former: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {
        number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for process in started:
            if process.poll() is None:
                process.kill()
                process.wait()
