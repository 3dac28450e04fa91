"""Where runs are, if nobody says."""

from downhill_rms.command.places import default_path
from tests.watching.test_rundirectory import make_run


def test_default_paths_are_numbered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(default_path("digits")) == "runs/digits"
    make_run("runs/digits")
    assert str(default_path("digits")) == "runs/digits-2"
    make_run("runs/digits-2")
    assert str(default_path("digits")) == "runs/digits-3"
