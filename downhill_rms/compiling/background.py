"""Compile a function in a child process, into PyTensor's on-disk cache."""

from __future__ import annotations

import ctypes
import inspect
import io
import logging
import os
import pickle
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import pytensor
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.traversal import graph_inputs, toposort

from downhill_rms.compiling.compiled import NOT_CACHED, CompiledFunction, is_cached
from downhill_rms.compiling.machine import flags, numba_cache, openblas_function, usable_cores

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

# The parent's import path comes before anything else: the child imports what the parent did.
COMMAND = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from downhill_rms.compiling import background; background.{}"
)

# How long a process that outlives this one may compile, the longest.
ALONE_SECONDS = 300

_is_child = False


class BackgroundCompilation:
    """A child process that compiles one function, and the thread that waits for it.

    Children share most of what they compile, so that one works at a time. Meanwhile OpenBLAS leaves
    it a core: its threads wait for each other in a busy loop, and with as many of them as cores an
    update took ten times as long while a child compiled.

    Parameters
    ----------
    function : CompiledFunction
        The function.
    marker : Path
        The file that a child writes when it has come to a good end. No child is started if it is
        there.
    batch : sequence of array
        A minibatch, for the types of the arrays.
    tell : callable
        Called in the thread when no child is at work any more; what it returns is whether anybody
        still wants the function.
    seconds : float
        If the child fails, the call comes no sooner than this after the start.

    Raises
    ------
    RuntimeError
        In a child, which would otherwise start children of its own if the module that defines an
        Op begins to train when it is imported.
    """

    def __init__(
        self,
        function: CompiledFunction,
        marker: Path,
        batch: Sequence[Any],
        tell: Callable[[], Any],
        seconds: float,
    ) -> None:
        if _is_child:
            raise RuntimeError("a module of the graph's Ops trains when it is imported")
        self.name, self.marker, self.tell, self.seconds = function.name, marker, tell, seconds
        self._cancelled = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._message, self._error = b"", ""
        try:
            self._message = _message(function, marker, batch)
        except Exception as error:  # whatever the graph's objects raise
            self._error = f"the graph cannot be pickled ({type(error).__name__}: {error})"
        self._thread = threading.Thread(target=self._run, name=f"compile {self.name}", daemon=True)

    def start(self) -> None:
        """Start the child as soon as no other is at work."""
        self._deadline = time.monotonic() + self.seconds
        _children.enter(self)
        self._thread.start()

    def take_message(self) -> bytes:
        """End the child for another process: what that has to compile, if it is still to do."""
        wanted = not (self._cancelled.is_set() or self._error or self.marker.exists())
        self.cancel()
        return self._message if wanted else b""

    def cancel(self) -> None:
        """End the child; nobody is told."""
        self._cancelled.set()
        if self._process is not None:
            self._process.kill()

    def _run(self) -> None:
        try:
            with _children.one_at_a_time:
                if not self._cancelled.is_set() and not self.marker.exists():
                    self._error = self._error or self._compile()
        finally:
            _children.leave(self)
        if self._error and not self._cancelled.is_set():
            log.warning(
                "no child process compiles the %s: %s. Training goes on uncompiled; what takes "
                "longer than %g s is compiled in the foreground then",
                *(self.name, self._error, self.seconds),
            )
            self._cancelled.wait(self._deadline - time.monotonic())
        _children.wait_for_all()
        if not self._cancelled.is_set():
            self.tell()

    def _compile(self) -> str:
        """Run the child to its end; returns what went wrong."""
        pipe = subprocess.PIPE
        try:
            self._process = _popen("compile_for_parent()", stdin=pipe, stderr=pipe)
        except OSError as error:
            return f"{sys.executable!r} cannot be started ({error})"
        if self._cancelled.is_set():
            self._process.kill()
        return _converse(self._process, self._message)


class _Children:
    """The children that work or wait, and the threads that OpenBLAS has meanwhile."""

    def __init__(self) -> None:
        self.one_at_a_time = threading.Lock()
        self._changed = threading.Condition()
        self._members: list[BackgroundCompilation] = []
        self._threads = 0

    def enter(self, compilation: BackgroundCompilation) -> None:
        with self._changed:
            self._members.append(compilation)
            if len(self._members) == 1 and (openblas := _openblas()):
                self._threads = openblas["get"]()
                openblas["set"](max(1, min(self._threads, usable_cores() - 1)))

    def leave(self, compilation: BackgroundCompilation) -> None:
        with self._changed:
            self._members.remove(compilation)
            if not self._members and (openblas := _openblas()):
                openblas["set"](self._threads)
            self._changed.notify_all()

    def wait_for_all(self) -> None:
        # The compiled function may bring a BLAS of its own, which would have all its threads.
        with self._changed:
            self._changed.wait_for(lambda: not self._members)

    def take_messages(self) -> list[bytes]:
        with self._changed:
            return [message for one in self._members if (message := one.take_message())]


_children = _Children()


def compile_alone(seconds: int = ALONE_SECONDS) -> int | None:
    """Have a process that outlives this one compile what children have not come to.

    It has the lowest priority and no terminal, and there is one for a cache: while it works,
    another program starts none.

    Parameters
    ----------
    seconds : int
        After this it ends, whatever it does.

    Returns
    -------
    int or None
        Its process id; None if there is nothing to compile, another one is at work, or the
        system has no such processes.
    """
    messages = _children.take_messages()
    if fcntl is None or not messages:
        return None
    try:
        return _start_alone(messages, seconds)
    except OSError as error:  # it would have been of use, and is not needed
        log.info("nothing compiles in the background: %s", error)
        return None


def _start_alone(messages: Sequence[bytes], seconds: int) -> int:
    path = numba_cache() / "downhill_rms.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as lock, TemporaryFile() as stdin:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        stdin.write(b"".join(messages))
        stdin.seek(0)
        # The lock goes with the file: the process has it until it ends, whatever ends it.
        call = f"compile_after_parent({seconds})"
        process = _popen(call, stdin, subprocess.DEVNULL, [lock.fileno()])
    process.returncode = 0  # nobody waits for it, on purpose: no ResourceWarning
    return process.pid


def _popen(
    call: str, stdin: Any, stderr: int, pass_fds: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """A process that compiles for the same cache, beyond the reach of Ctrl-C."""
    flags = f"base_compiledir={shlex.quote(str(pytensor.config.base_compiledir))}"
    inherited = os.environ.get("PYTENSOR_FLAGS")
    return subprocess.Popen(
        [sys.executable or "python", "-c", COMMAND.format(call)],
        stdin=stdin,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        env=os.environ | {"PYTENSOR_FLAGS": f"{inherited},{flags}" if inherited else flags},
        start_new_session=True,
        pass_fds=pass_fds,
    )


def _openblas() -> dict[str, Any]:
    """The functions that get and set the number of threads, if NumPy's BLAS is OpenBLAS."""
    library = ctypes.CDLL(np.linalg._umath_linalg.__file__)  # a symbol is sought in what it needs
    found = {verb: openblas_function(library, f"{verb}_num_threads") for verb in ("get", "set")}
    return found if None not in found.values() else {}


def _converse(process: subprocess.Popen[bytes], message: bytes) -> str:
    """Send the message and wait for the end; returns why the process failed, if it did."""
    with process:
        assert process.stdin is not None
        assert process.stderr is not None
        with suppress(OSError):  # it may be dead already
            process.stdin.write(message)
            process.stdin.flush()
        # The end of its input is for the child the end of its parent: it stays open until now.
        said = process.stderr.read().decode(errors="replace").strip()
        with suppress(OSError):
            process.stdin.close()
    if process.returncode == 0:
        return ""
    return f"exit status {process.returncode}, {said.splitlines()[-1] if said else 'no message'}"


def _message(function: CompiledFunction, marker: Path, batch: Sequence[Any]) -> bytes:
    """What a child reads: the import path; flags and marker; the function and its arrays."""
    updates = list(function.updates)
    expressions = [*function.outputs, *(new for _, new in updates)]
    leaves = [*graph_inputs(expressions), *(shared for shared, _ in updates)]
    shared = [variable for variable in leaves if isinstance(variable, SharedVariable)]
    arrays = [*batch, *(variable.get_value(borrow=True) for variable in shared)]
    specification = (function.name, function.inputs, function.outputs, updates, function.mode)
    # In topological order no node is reached through a chain of others: no deep recursion.
    nodes = list(toposort(expressions))
    stream = io.BytesIO()
    pickle.dump(sys.path, stream)
    # The child reads the other flags from the same environment and configuration file.
    pickle.dump((flags(), marker), stream)
    _StandIns(stream, arrays).dump((nodes, specification, list(batch)))
    return stream.getvalue()


class _StandIns(pickle.Pickler):
    """Sends small arrays of the same types for arrays whose values nobody looks at."""

    def __init__(self, stream: io.BytesIO, arrays: Sequence[Any]) -> None:
        super().__init__(stream, protocol=pickle.HIGHEST_PROTOCOL)
        self._arrays = {id(array) for array in arrays}

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is not np.ndarray or id(obj) not in self._arrays:
            return NotImplemented
        fortran = obj.flags.f_contiguous and not obj.flags.c_contiguous
        return np.zeros, ((2,) * obj.ndim, obj.dtype, "F" if fortran else "C")


def compile_for_parent() -> None:
    """Compile what the standard input describes: the main function of a child."""
    _be_child(priority=5)
    end_with_parent = threading.Thread(target=_end_with_parent, daemon=True)
    _compile_next(end_with_parent.start)


def compile_after_parent(seconds: int) -> None:
    """Compile all that the standard input describes, one after the other, with nobody waiting."""
    _be_child(priority=19)
    signal.alarm(seconds)  # its default action ends the process
    with suppress(EOFError):
        while True:
            with suppress(Exception):  # the others are of use all the same
                _compile_next()
            pickle.load(sys.stdin.buffer)  # the next one's import path, which is the same


def _be_child(priority: int) -> None:
    global _is_child
    _is_child = True
    if hasattr(os, "nice"):
        os.nice(priority)


def _compile_next(begin: Callable[[], Any] = bool) -> None:
    """Compile what the standard input describes next, when it is read and something has begun."""
    values, marker = pickle.load(sys.stdin.buffer)
    with pytensor.config.change_flags(**values):
        _, specification, batch = pickle.load(sys.stdin.buffer)
        begin()
        if marker.exists():  # another process was faster
            return
        function = CompiledFunction(*specification).build()
        arguments = [container.storage[0] for container in function.input_storage]
        arguments[: len(batch)] = batch
        _compile_for_types_of(tuple(arguments), function.vm.jit_fn)
    if not is_cached(function):
        raise RuntimeError(NOT_CACHED)
    marker.touch()


def _compile_for_types_of(arguments: tuple[Any, ...], dispatcher: Any) -> None:
    """Compile as a call would, but do not call: with stand-ins that would make no sense."""
    if hasattr(dispatcher, "compile_for"):  # not Numba's, but the linker's around it
        dispatcher.compile_for(arguments)
        return
    parameters = inspect.signature(dispatcher.py_func).parameters.values()
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        arguments = (arguments,)  # Numba takes what *args stands for as one tuple
    dispatcher.compile(tuple(map(dispatcher.typeof_pyval, arguments)))


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # nothing more is sent: this returns when the parent has ended
    os._exit(1)
