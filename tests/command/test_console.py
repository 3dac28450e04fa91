"""What the command line prints, and where its log goes."""

import logging
import warnings

import click
import numpy as np
import pytest
from click.testing import CliRunner

from downhill_rms.command.console import (
    logging_to_terminal,
    one_line,
    parse_assignment,
    parse_picture,
    sparkline,
    table,
    text_curves,
)
from downhill_rms.watching.history import History, Record

log = logging.getLogger("downhill_rms.test")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("learning_rate=1e-3", ("learning_rate", 1e-3)),
        ("momentum = .9", ("momentum", 0.9)),
        ("nesterov=True", ("nesterov", True)),
        ("centered=false", ("centered", False)),
        ("decay=none", ("decay", None)),
        ("regularize=rms", ("regularize", "rms")),
        ("name=a=b", ("name", "a=b")),
    ],
)
def test_an_assignment_is_a_name_and_a_value(text, expected):
    assert parse_assignment(text) == expected


@pytest.mark.parametrize("text", ["momentum", "=1", "momentum=", ""])
def test_an_assignment_without_name_or_value_is_a_usage_error(text):
    with pytest.raises(click.BadParameter, match="name=value"):
        parse_assignment(text)


@pytest.mark.filterwarnings("default")
def test_the_log_and_warnings_go_to_the_terminal(capsys):
    before = list(logging.getLogger("downhill_rms").handlers)
    with logging_to_terminal(logging.WARNING):
        log.info("an epoch")
        log.warning("a warning")
        warnings.warn("from Python", stacklevel=1)
    assert capsys.readouterr().err.splitlines() == ["a warning", "from Python"]
    assert logging.getLogger("downhill_rms").handlers == before


def test_warnings_are_coloured_on_a_terminal():
    @click.command()
    def command():
        with logging_to_terminal(logging.INFO):
            log.info("plain")
            log.warning("yellow")

    result = CliRunner().invoke(command, color=True)
    assert result.stderr == "plain\x1b[0m\n\x1b[33myellow\x1b[0m\n"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("The fact:\n  the rule.\n\nA long story."), "The fact: the rule."),
        (ZeroDivisionError("by zero"), "ZeroDivisionError: by zero (--debug shows where)"),
        (ValueError(), "ValueError:  (--debug shows where)"),
    ],
)
def test_an_error_is_one_line(error, expected):
    assert one_line(error) == expected


def test_a_sparkline_spans_its_axis():
    axis = np.array([0.0, 7.0])
    # half goes to the even one
    assert sparkline([0.0, 1.0, 3.5, 7.0, np.nan, 7.0], axis) == "▁▂▅█ █"
    assert sparkline([2.0, 2.0], np.array([2.0, 2.0])) == "▁▁"
    assert sparkline([], axis) == ""
    assert sparkline([np.nan], np.array([])) == " "


def history(losses):
    records = [Record(i, i, 0.0, {"loss": v}, {"loss": v}) for i, v in enumerate(losses)]
    return History(records)


def test_text_curves_give_first_lowest_and_last():
    lines = text_curves({"a": history([3.0, 1.0, 2.0])}, ["loss"]).splitlines()
    assert lines[0].split() == ["run", "curve", "first", "lowest", "last", "epochs"]
    assert lines[1].split() == ["a", "train_loss", "3", "1", "2", "█▁▅"]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_text_curves_of_a_long_run_fit_the_terminal(width):
    text = text_curves({"runs/digits": history(np.linspace(1, 0, 1000))}, ["loss"], width)
    assert max(map(len, text.splitlines())) <= width
    assert "lowest" in text


def test_text_curves_have_the_axis_of_the_picture():
    """Logarithmic where it is there, and one axis for all curves of a monitor."""
    runs = {"a": history([100.0, 10.0, 1.0]), "b": history([10.0, 10.0, 10.0])}
    lines = text_curves(runs, ["loss"]).splitlines()
    assert lines[1].split()[-1] == "█▄▁" or lines[1].split()[-1] == "█▅▁"
    assert len(set(lines[3].split()[-1])) == 1
    assert lines[3].split()[-1][0] == lines[1].split()[-1][1]


def test_text_curves_of_nothing():
    with pytest.raises(ValueError, match="a has no monitor 'loss': it has none"):
        text_curves({"a": History()}, ["loss"])
    assert "nan" in text_curves({"a": history([np.nan])}, ["loss"])


def test_text_curves_name_the_monitors_that_there_are():
    with pytest.raises(ValueError, match="a has no monitor 'error': it has loss"):
        text_curves({"a": history([1.0])}, ["error"])


def test_a_table_has_columns():
    text = table([{"run": "a", "loss": "1"}, {"run": "bbbb", "seed": "7"}])
    assert text.splitlines() == ["run   loss  seed", "a     1     -", "bbbb  -     7"]


@pytest.mark.parametrize("name", ["curves", "curves.gif", "missing/curves.png"])
def test_a_picture_that_cannot_be_written_is_a_usage_error(name, tmp_path):
    with pytest.raises(click.BadParameter, match="is no picture|is not there"):
        parse_picture(str(tmp_path / name))


@pytest.mark.parametrize("name", ["curves.png", "curves.SVG", "a.b.pdf"])
def test_a_picture_is_a_path(name, tmp_path):
    assert parse_picture(str(tmp_path / name)) == tmp_path / name
