"""Records, and their columns."""

import numpy as np

from downhill_rms.history import History, Record


def record(epoch, loss, **kwargs):
    return Record(epoch, 10 * epoch, 0.5, {"loss": loss, "e": 0.25}, {"loss": 2 * loss}, **kwargs)


def test_history_is_a_sequence_of_records():
    history = History()
    for epoch in (1, 2, 3):
        history.append(record(epoch, 1 / epoch))
    assert len(history) == 3
    assert history[-1].epoch == 3
    assert [r.updates for r in history] == [10, 20, 30]


def test_columns():
    history = History([record(1, 4.0), record(2, 3.0, validated=True, best=True)])
    columns = history.to_dict()
    np.testing.assert_array_equal(columns["train_loss"], [4, 3])
    np.testing.assert_array_equal(columns["valid_loss"], [8, 6])
    np.testing.assert_array_equal(columns["best"], [False, True])
    assert set(columns) == {
        *("epoch", "updates", "seconds", "validated", "best"),
        *("train_loss", "train_e", "valid_loss"),
    }
    assert History().to_dict()["epoch"].shape == (0,)


def test_a_record_reads_as_a_line_or_two():
    assert str(record(7, 0.123456)) == "epoch    7  update     70  train loss=0.1235    e=0.25"
    text = str(record(7, 0.5, validated=True, best=True)).splitlines()
    assert len(text) == 2
    assert text[1].endswith("best valid loss=1")
    assert text[0].index("train") == text[1].index("valid")
