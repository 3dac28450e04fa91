"""Every Python program in README and docs runs as it is printed."""

import re
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PEERS = ("import torch", "import keras")


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
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for block in programs(page):
        exec(compile(block, str(page), "exec"), names)
