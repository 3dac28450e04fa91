"""States with one bad field."""

from tests.reliability import fields


def test_one_bad_field_is_refused_and_changes_nothing(mode):
    """The same as python -m tests.reliability.fields, which prints the counts."""
    result = fields.run(mode)
    assert result.loaded == []
    assert result.other_exceptions == []
    assert result.changed == []
    assert result.refused > 1000
