"""The bar: what it says, that it fits its terminal, and when there is none."""

import logging
import os
import pty
import re
import subprocess
import sys
import termios

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from downhill_rms import Dataset, Trainer
from downhill_rms.watching.report import Bar, Progress, open_progress

DATA = [np.arange(40.0)]


class Terminal:
    """Standard error as a terminal of 80 columns, and what was written to it."""

    def __init__(self, capsys):
        self.capsys, self.text = capsys, ""

    @property
    def written(self):
        self.text += self.capsys.readouterr().err
        return self.text

    @property
    def lines(self):
        """Everything that was drawn, one drawing after the other."""
        return [line.rstrip() for line in re.split(r"[\r\n]+", self.written) if line.strip()]


@pytest.fixture
def terminal(capsys, monkeypatch):
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda stream: True)
    monkeypatch.setattr(type(sys.stderr), "fileno", lambda stream: 2)
    set_columns(monkeypatch, 80)
    return Terminal(capsys)


def set_columns(monkeypatch, columns):
    monkeypatch.setattr(os, "get_terminal_size", lambda *_: os.terminal_size((columns, 24)))


@pytest.fixture
def clock(monkeypatch):
    """A list of the seconds that have passed; append to it to let time go by."""
    seconds = [1000.0]
    monkeypatch.setattr("time.perf_counter", lambda: seconds[-1])
    return seconds


def make(mode):
    x = pt.vector("x")
    w = pytensor.shared(0.0, name="w")
    return Trainer(pt.sqr(x - w).mean(), mode=mode)


def test_minimize_shows_a_bar_in_a_terminal(terminal, mode):
    trainer = make(mode)
    trainer.minimize(Dataset(DATA, batch_size=10), max_epochs=3, learning_rate=0.1)
    compiling = [line for line in terminal.lines if line.startswith("compiling")]
    assert [line.split(" (")[0] for line in compiling] == [
        "compiling the evaluation",
        "compiling the RMSProp update",
    ]
    assert "once; PyTensor caches the result on disk" in compiling[0]
    last = terminal.lines[-1]
    assert last.startswith("epoch 3/3 |")
    assert "/s " in last
    shown = dict(re.findall(r"(train|valid|best) (\S+)", last))
    record = trainer.history[-1]
    expected = {"train": record.train, "valid": record.valid, "best": trainer.best.monitors}
    for name, values in expected.items():
        assert float(shown[name]) == pytest.approx(values["loss"], rel=5e-3)


def test_no_line_is_wider_than_the_terminal(terminal, mode):
    trainer = make(mode)
    trainer.minimize(Dataset([np.arange(40.0) * 1e9], batch_size=10), max_epochs=12)
    assert terminal.lines
    assert max(map(len, terminal.lines)) <= 80
    assert "best" in terminal.lines[-1]


@pytest.mark.parametrize(
    ("limits", "start"),
    [
        ({"max_updates": 7}, r"epoch 2 \|"),
        ({"max_epochs": 2, "max_updates": 100}, r"epoch 2/2 \|"),
        ({"patience": 0, "validate_every": 1, "learning_rate": 0.0}, r"epoch 1 +[\d,.]+/s"),
    ],
)
def test_time_left_is_shown_where_a_limit_is_known(limits, start, terminal, mode):
    make(mode).minimize(Dataset(DATA, batch_size=10), **limits)
    assert re.match(start, terminal.lines[-1])


def test_the_rate_counts_updates_and_not_the_compilation(terminal, clock):
    bar = Bar(1000, None)
    bar.say("compiling")
    clock.append(1100.0)
    bar.draw(1, 0, {})
    clock.append(1101.0)
    bar.draw(1, 250, {})
    bar.close()
    assert "|    250/s 00:03" in terminal.lines[-1]


def test_a_resumed_run_counts_its_own_updates(terminal, clock):
    bar = Bar(1000, None)
    bar.draw(3, 500, {})
    clock.append(1001.0)
    bar.draw(3, 600, {})
    bar.close()
    assert "|    100/s 00:04" in terminal.lines[-1]


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_nothing_moves_about_and_nothing_is_cut(columns, terminal, clock, monkeypatch):
    set_columns(monkeypatch, columns)
    bar = Bar(10_000, 100)
    rng = np.random.default_rng(0)
    for step in range(1, 30):
        values = dict(
            zip(("train", "valid", "accuracy", "best"), 10 ** rng.normal(0, 3, 4), strict=True)
        )
        bar.draw(10 + step, 100 * step, values)
        clock.append(clock[-1] + rng.uniform(0.01, 1))
    bar.close()
    drawn = terminal.lines[1:]
    assert max(map(len, drawn)) <= columns
    assert len({line.rindex("|") for line in drawn}) == 1
    for name in ("train", "valid") if columns == 60 else ("train", "valid", "accuracy"):
        places = {line.index(f" {name} ") for line in drawn}
        assert len(places) == 1
    assert all(re.search(r"\d$", line) for line in drawn)


def test_a_wide_terminal_has_it_written_out(terminal, clock, monkeypatch):
    set_columns(monkeypatch, 120)
    bar = Bar(1000, 10)
    bar.draw(1, 0, {})
    clock.append(1001.0)
    bar.draw(1, 2, {"train": 0.5, "valid": float("nan")})
    bar.close()
    assert terminal.lines[-1].endswith("|      2 updates/s 08:19 left train 0.5")


def test_braces_in_what_is_said_are_text(terminal):
    bar = Bar(None, None)
    bar.say("compiling {bar}")
    bar.close()
    assert "compiling {bar}" in terminal.lines


def test_there_is_no_bar_without_a_terminal(mode, capsys):
    make(mode).minimize(DATA, max_epochs=3, progress=True)
    assert capsys.readouterr().err == ""


def test_there_is_no_bar_when_it_is_declined(terminal, mode):
    make(mode).minimize(DATA, max_epochs=3, progress=False)
    assert terminal.written == ""


def test_a_loop_of_ones_own_has_no_bar_unless_it_asks(terminal, mode):
    list(make(mode).iterate(DATA, max_epochs=3))
    assert terminal.written == ""
    list(make(mode).iterate(DATA, max_epochs=3, progress=True))
    assert "/s " in terminal.written


def test_whoever_reads_the_log_sees_lines_instead(terminal, mode, caplog):
    with caplog.at_level(logging.INFO, logger="downhill_rms"):
        make(mode).minimize(DATA, max_epochs=3)
    assert terminal.written == ""
    assert sum(message.startswith("epoch") for message in caplog.messages) == 3


def test_without_tqdm_a_wanted_bar_says_what_to_install(terminal, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ImportError, match=r'pip install "downhill_rms\[progress\]"'):
        open_progress(True, None, None)


def test_without_tqdm_a_line_says_what_takes_long(terminal, mode, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    make(mode).minimize(DATA, max_epochs=3)
    assert [line.split(" (")[0] for line in terminal.lines] == [
        "compiling the evaluation",
        "compiling the RMSProp update",
    ]


def test_nothing_is_drawn_twice_within_a_tenth_of_a_second(terminal):
    bar = Bar(10, None)
    assert bar.due()
    bar.draw(1, 1, {})
    assert not bar.due()
    bar.close()


def test_the_silent_one_is_never_due():
    assert not Progress().due()


SCRIPT = """
import numpy as np, pytensor, pytensor.tensor as pt
from downhill_rms import Dataset, Trainer
pytensor.config.cxx, pytensor.config.mode = "", "FAST_COMPILE"
x, w = pt.vector("x"), pytensor.shared(0.0, name="w")
trainer = Trainer(pt.sqr(x - w).mean())
trainer.minimize(Dataset([np.arange(40.0)], batch_size=4), max_epochs=400, patience=1e9)
"""


def test_on_a_real_terminal_it_stays_on_one_line():
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], stderr=slave, env=environment)
    os.close(slave)
    written = b""
    try:
        while chunk := os.read(master, 65536):
            written += chunk
    except OSError:  # how Linux says that the other end is closed
        pass
    assert process.wait() == 0
    os.close(master)
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", written.decode())
    assert text.count("\n") == 1  # after the last drawing
    drawings = [line for line in re.split(r"[\r\n]+", text) if line.strip()]
    assert len(drawings) > 3
    assert max(map(len, drawings)) <= 80
    assert drawings[-1].startswith("epoch 400/400 |")
