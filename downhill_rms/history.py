"""What happened: one record for each epoch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import numpy as np

from downhill_rms.monitors import Values


@dataclass(frozen=True)
class Record:
    """One epoch.

    Attributes
    ----------
    epoch : int
        Epochs of the trainer so far, this one included.
    updates : int
        Updates of the trainer so far.
    seconds : float
        Wall time since the run began, in seconds.
    train, valid : dict of str to float
        Means over the epoch's minibatches, and over the most recent validation.
    validated : bool
        Whether that validation was made at the end of this epoch.
    best : bool
        Whether it was the best of the run so far.
    """

    epoch: int
    updates: int
    seconds: float
    train: Values
    valid: Values
    validated: bool = False
    best: bool = False

    def __str__(self) -> str:
        text = f"epoch {self.epoch:4d}  update {self.updates:6d}  train {format_values(self.train)}"
        if self.validated:
            mark = "best " if self.best else "     "
            text += f"\n{mark:>27}valid {format_values(self.valid)}"
        return text


def format_values(values: Values) -> str:
    """Monitors on one line, four significant digits each, in columns."""
    return " ".join(f"{name}={value:<9.4g}" for name, value in values.items()).rstrip()


@dataclass
class History:
    """The records of a trainer, oldest first.

    A record is an index away (``history[-1]``); ``to_dict`` gives columns.
    """

    records: list[Record] = field(default_factory=list)

    def append(self, record: Record) -> None:
        """Add a record."""
        self.records.append(record)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        return self.records[index]

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def to_json(self) -> str:
        """All records as one JSON text; floats come back exactly."""
        return json.dumps([asdict(record) for record in self.records])

    @classmethod
    def from_json(cls, text: str) -> History:
        """The history that `to_json` wrote."""
        return cls([Record(**record) for record in json.loads(text)])

    def to_dict(self) -> dict[str, np.ndarray]:
        """Columns as arrays; monitors are called ``train_loss``, ``valid_loss`` and so on."""
        columns: dict[str, np.ndarray] = {
            name: np.array([getattr(record, name) for record in self.records])
            for name in ("epoch", "updates", "seconds", "validated", "best")
        }
        for part in ("train", "valid"):
            rows: list[Values] = [getattr(record, part) for record in self.records]
            for name in rows[0] if rows else ():
                columns[f"{part}_{name}"] = np.array([row[name] for row in rows])
        return columns
