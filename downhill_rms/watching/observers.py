"""Observers: where the record of each epoch goes, beside the history.

An observer is any callable; ``iterate(observers=[...])`` gives it each `Record`. The two here keep
something open, and are context managers.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

from downhill_rms.rule import Hyperparameters, check_path
from downhill_rms.watching.history import Record

# MLflow takes slashes too, but a store of files makes directories of them: a monitor could not be
# called a where another is called a/b. It takes colons only where the system's files may have them.
MLFLOW_REFUSES = re.compile(r"[^\w\-. ]")


def scalars(record: Record) -> Iterator[tuple[str, float]]:
    """What observers report of a record: ``train/loss`` and so on, and the learning rate.

    Validation monitors are reported with the epochs that were validated.
    """
    yield from ((f"train/{name}", value) for name, value in record.train.items())
    if record.validated:
        yield from ((f"valid/{name}", value) for name, value in record.valid.items())
    yield "learning_rate", record.learning_rate


class TensorBoard:
    """Write records as scalars of a TensorBoard event file (extra ``tensorboard``).

    A scalar's step is the number of updates, so that runs with different minibatches compare.
    Its value is in single precision, which is all that TensorBoard keeps. Every record is on disk
    before the next epoch begins. A run that goes on in its directory, or that was rolled back,
    takes the place of what TensorBoard has from that step on.

    Parameters
    ----------
    directory : path
        Where TensorBoard looks (``tensorboard --logdir``); one for each run.

    Raises
    ------
    ImportError
        If TensorBoard is not installed.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        folder = check_path("directory", directory)
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError as error:
            raise ImportError(
                "TensorBoard is not installed. Event files are written by it. "
                'Run pip install "downhill_rms[tensorboard]".'
            ) from error
        self._event, self._session = event_pb2.Event, event_pb2.SessionLog
        self._summary = summary_pb2.Summary
        self._writer = EventFileWriter(str(folder))
        self._updates = math.inf

    def __call__(self, record: Record) -> None:
        """Write a record."""
        if record.updates <= self._updates:  # the first one, or one after a rollback
            self._write(record, session_log=self._session(status=self._session.START))
        values = [self._summary.Value(tag=name, simple_value=v) for name, v in scalars(record)]
        self._write(record, summary=self._summary(value=values))
        self._writer.flush()
        self._updates = record.updates

    def _write(self, record: Record, **content: Any) -> None:
        event = self._event(wall_time=time.time(), step=record.updates, **content)
        self._writer.add_event(event)

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class MLflow:
    """Log records as metrics of an MLflow run of its own (extra ``mlflow``).

    A metric's step is the number of updates. MLflow takes few characters in names: in the name of
    a monitor, what is no letter, digit, ``_``, ``-``, ``.`` or space becomes ``_``, and
    ``grad(w)`` is ``train/grad_w_``. Where two monitors would have the same name, the later gets
    one more ``_``. The run is another than MLflow's active one, and several live side by side.

    Parameters
    ----------
    experiment : str, optional
        Name of the experiment, made if it is not there; by default MLflow's own, ``Default``.
    run_name : str, optional
        Name of the run; MLflow makes one up by default.
    tracking_uri : str, optional
        Of the server or store; by default what MLflow is set to.
    params : mapping or Hyperparameters, optional
        What the run is labelled with, such as ``trainer.hyperparameters``. Values become texts,
        and functions their names.

    Attributes
    ----------
    run_id : str
        The run's id in MLflow.

    Raises
    ------
    ImportError
        If MLflow is not installed.
    """

    def __init__(
        self,
        experiment: str | None = None,
        run_name: str | None = None,
        tracking_uri: str | None = None,
        params: Mapping[str, Any] | Hyperparameters | None = None,
    ) -> None:
        try:
            from mlflow import MlflowClient, entities
        except ImportError as error:
            raise ImportError(
                "MLflow is not installed. Metrics are logged by it. "
                'Run pip install "downhill_rms[mlflow]".'
            ) from error
        labels = [
            entities.Param(MLFLOW_REFUSES.sub("_", name), _text(value))
            for name, value in dict(params or {}).items()
        ]
        self._metric = entities.Metric
        self._client = MlflowClient(tracking_uri=tracking_uri)
        self._names: dict[str, str] = {}
        self._ended = False
        name = experiment or "Default"
        found = self._client.get_experiment_by_name(name)
        identity = found.experiment_id if found else self._client.create_experiment(name)
        self.run_id: str = self._client.create_run(identity, run_name=run_name).info.run_id
        self._client.log_batch(self.run_id, params=labels)

    def __call__(self, record: Record) -> None:
        """Log a record."""
        now = time.time_ns() // 1_000_000
        metrics = [
            self._metric(self._name(name), value, now, record.updates)
            for name, value in scalars(record)
        ]
        self._client.log_batch(self.run_id, metrics=metrics)

    def _name(self, scalar: str) -> str:
        """What MLflow calls a scalar, always the same."""
        if scalar not in self._names:
            part, slash, monitor = scalar.partition("/")
            name = part + slash + MLFLOW_REFUSES.sub("_", monitor)
            while name in self._names.values():
                name += "_"
            self._names[scalar] = name
        return self._names[scalar]

    def __enter__(self) -> MLflow:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        self.close("FINISHED" if kind is None else "FAILED")

    def close(self, status: str = "FINISHED") -> None:
        """End the run, unless it has ended, with a status of MLflow's: FINISHED, FAILED, KILLED."""
        if not self._ended:
            self._client.set_terminated(self.run_id, status)
            self._ended = True


def _text(value: Any) -> str:
    """A value as a text that is the same for every run."""
    if callable(value):
        return str(getattr(value, "__qualname__", type(value).__qualname__))
    return str(value)
