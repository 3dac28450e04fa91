"""``python -m downhill_rms``: the command line."""

from downhill_rms.command.cli import main

if __name__ == "__main__":
    main(prog_name="downhill-rms")
