"""What the commands of command_line.rst print: ``python docs/transcripts.py`` writes it there."""

import contextlib
import io
import os
import re
import tempfile
import textwrap
from pathlib import Path

from downhill_rms.command.cli import main

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "command_line.rst"
COMMANDS = ("check examples/digits.py", "demo quadratic")  # that print the same every time
MACHINE = "this machine"  # and what follows, which another machine words otherwise


def block_of(command):
    """The pattern of a command's output on the page: what is indented below it."""
    return re.compile(rf"(    \$ downhill-rms {re.escape(command)}\n)((?:    .+\n)+)")


def shown(command, text):
    """What a page shows of a command."""
    return textwrap.dedent(block_of(command).search(text)[2])


def printed(command):
    """What a command prints, run in a directory of its own."""
    output = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        os.symlink(ROOT / "examples", "examples")
        with contextlib.redirect_stdout(output):
            main(command.split(), standalone_mode=False)
    return output.getvalue()


def write():
    """Put what the commands print today on the page; what is of a machine stays as it is."""
    text = PAGE.read_text(encoding="utf-8")
    for command in COMMANDS:
        lines = printed(command).partition(MACHINE)[0]
        _, heading, machine = shown(command, text).partition(MACHINE)
        block = textwrap.indent(lines + heading + machine, "    ")
        text = block_of(command).sub(lambda found, block=block: found[1] + block, text)
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
