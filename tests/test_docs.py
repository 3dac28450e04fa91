"""Every Python program in README and docs runs as it is printed."""

import importlib
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from downhill_rms.command.cli import main

ROOT = Path(__file__).parent.parent
PEERS = ("import torch", "import keras", "from pymc_extras")


def programs(path):
    """The Python blocks of a page, in order."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    else:
        found = re.findall(r"\.\. code-block:: python\n\n((?:(?: +.*)?\n)+)", text)
        blocks = [textwrap.dedent(block) for block in found]
    return [block for block in blocks if not any(peer in block for peer in PEERS)]


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.rst"))]


@pytest.mark.filterwarnings("default::UserWarning")
@pytest.mark.parametrize("page", [p for p in PAGES if programs(p)], ids=lambda p: p.stem)
def test_programs_run(page, tmp_path, monkeypatch, capsys):
    if "import pymc" in "".join(programs(page)):
        pytest.importorskip("pymc", reason="PyMC is not installed: it needs Python 3.12")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for block in programs(page):
        exec(compile(block, str(page), "exec"), names)


def test_a_trained_model_is_used_by_a_second_process(tmp_path):
    """The page's two programs share nothing but the file."""
    flags = f"{os.environ.get('PYTENSOR_FLAGS', '')},mode=FAST_COMPILE,cxx=".lstrip(",")
    environment = dict(os.environ, PYTHONPATH=str(ROOT), PYTENSOR_FLAGS=flags)
    printed = []
    for block in programs(ROOT / "docs" / "trained_model.rst"):
        command = [sys.executable, "-c", block]
        options = {"capture_output": True, "text": True, "cwd": tmp_path, "env": environment}
        done = subprocess.run(command, timeout=120, check=True, **options)
        printed.append(done.stdout)
    training, predicting = printed
    assert float(training.split()[-1]) > 0.9
    rows = [[float(n) for n in row.split()] for row in re.findall(r"[\d][\d. ]+", predicting)]
    assert [row.index(max(row)) for row in rows] == [0, 1, 2]


def test_the_page_of_commands_shows_what_they_print(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    transcripts = importlib.import_module("transcripts")
    page = transcripts.on_page(transcripts.PAGE.read_text(encoding="utf-8"))
    assert {command.split()[0] for command in page} == set(main.commands)
    for (command, shown), lines in zip(page.items(), transcripts.printed(list(page)), strict=True):
        printed = transcripts.as_shown(lines, shown)
        assert transcripts.still(command, shown) == transcripts.still(command, printed)
