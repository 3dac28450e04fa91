"""Watching: what happened, as data, on a terminal, in pictures and in other programs.

Here stand monitors and their means, the history, the bar and the files of a run; and observers and
pictures (``observers``, ``plots``, imported when used). It may import ``rule``. Open ``history.py``
first.
"""

from downhill_rms.watching.history import History, HistoryFile, Record, format_values
from downhill_rms.watching.monitors import PassMean, Values, named_expressions
from downhill_rms.watching.notebook import html_table
from downhill_rms.watching.report import Progress, open_progress, watched
from downhill_rms.watching.rundirectory import RunDirectory

__all__ = [
    "History",
    "HistoryFile",
    "PassMean",
    "Progress",
    "Record",
    "RunDirectory",
    "Values",
    "format_values",
    "html_table",
    "named_expressions",
    "open_progress",
    "watched",
]
