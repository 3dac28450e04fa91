"""The processes of one command: who starts them, and which of them this is."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import click

from downhill_rms.parallel import from_leader, initialize, refuse_without_jax, run_processes


@dataclass(frozen=True)
class Team:
    """The processes that a command was asked to train with.

    Attributes
    ----------
    processes : int or None
        How many.
    coordinator : str or None
        Where process 0 listens; ``"auto"`` to have JAX look for a cluster.
    process_id : int or None
        Which of them this is.
    """

    processes: int | None
    coordinator: str | None
    process_id: int | None

    def __post_init__(self) -> None:
        if self.is_joined or self.is_to_be_started:
            refuse_without_jax("--processes" if self.processes else "--coordinator")
        if self.coordinator is None and self.process_id is not None:
            raise click.UsageError(
                "--process-id is given without --coordinator: a process joins others at an "
                "address. Give HOST:PORT of process 0."
            )
        numbered = self.processes is not None and self.process_id is not None
        if self.coordinator not in (None, "auto") and not numbered:
            raise click.UsageError(
                "--coordinator is given without --processes or --process-id: a process says how "
                "many there are, and which it is. Give both, or --coordinator auto on a cluster."
            )
        if numbered and self.process_id not in range(self.processes or 0):
            raise click.UsageError(
                f"--process-id is {self.process_id} of {self.processes} processes: they are "
                "counted from 0. Give a smaller one."
            )

    @property
    def is_joined(self) -> bool:
        """Whether this is one of the processes."""
        return self.coordinator is not None

    @property
    def is_to_be_started(self) -> bool:
        """Whether this command is to start the processes, and wait for them."""
        return self.coordinator is None and (self.processes or 1) > 1

    @property
    def leads(self) -> bool:
        """Whether this process writes and shows."""
        if not self.is_joined:
            return True
        import jax

        return bool(jax.process_index() == 0)

    @property
    def options(self) -> str:
        """What a command that goes on needs to have as many processes of one host."""
        return f" --processes {self.processes}" if self.processes is not None else ""

    def join(self) -> None:
        """Join the other processes, if this is one of several."""
        if self.is_joined:
            coordinator = None if self.coordinator == "auto" else self.coordinator
            initialize(coordinator, self.processes, self.process_id)

    def from_leader(self, text: str) -> str:
        """The leader's text, in every process."""
        return from_leader(text) if self.is_joined else text

    def run(self, out: Path, words: str) -> None:
        """Start the processes with this program's own arguments, and end as they do.

        Parameters
        ----------
        out : Path
            The run directory, which all are given.
        words : str
            The command by which a run goes on.
        """
        assert self.processes is not None
        command = [sys.executable, "-m", "downhill_rms", *sys.argv[1:], "--out", str(out)]
        code, failure = run_processes(command, self.processes)
        if failure is None:
            sys.exit(code)
        for line in failure.error.splitlines()[-5:]:
            click.echo(f"  {line}", err=True)
        raise click.ClickException(
            f"{failure}, and a run needs all of its processes. What was saved is whole: go on "
            f"with: {words}{self.options}"
        )


def parse_devices(text: str) -> int | str:
    """A count of devices, or all of them."""
    if text == "all":
        return text
    if not text.isdigit() or int(text) < 1:
        raise click.BadParameter(f"{text!r} is no number of devices: give a count, or all.")
    return int(text)
