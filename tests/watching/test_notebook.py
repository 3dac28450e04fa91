"""A notebook shows what its cells end with: tables, pictures, and short lines."""

import nbclient
import nbformat
import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from downhill_rms import Dataset, Hyperparameters, Trainer
from downhill_rms.watching import History, Record
from downhill_rms.watching.notebook import html_table

CELLS = [
    """
import numpy as np, pytensor, pytensor.tensor as pt
import downhill_rms as dr
from downhill_rms import plots
x, w = pt.vector("x"), pytensor.shared(0.0, name="w")
trainer = dr.Trainer(pt.sqr(x - w).mean(), mode="FAST_COMPILE")
""",
    "trainer.minimize([np.ones(64)], learning_rate=0.1, max_epochs=15, validate_every=5)",
    "trainer.history",
    "plots.learning_curves(trainer.history)",
    "trainer",
    "trainer.best",
    "dr.Dataset(np.zeros((10, 3)), name='points')",
]


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """A notebook with the outputs of its cells."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in CELLS])
    directory = str(tmp_path_factory.mktemp("notebook"))
    client = nbclient.NotebookClient(
        notebook, timeout=120, resources={"metadata": {"path": directory}}
    )
    return client.execute()


@pytest.fixture
def outputs(executed):
    """What each cell ends with, by kind."""
    return [cell.outputs[-1].get("data", {}) if cell.outputs else {} for cell in executed.cells]


def test_a_history_is_a_table_of_its_last_epochs(outputs):
    text = outputs[2]["text/html"]
    assert text.count("<tr>") == 1 + 12
    assert "15 epochs, the last 12 of them" in text
    assert "<th>train loss</th><th>valid loss</th>" in text
    assert text.count("✓") > 0


def test_a_figure_is_a_picture_in_its_cell(outputs):
    assert outputs[3]["image/png"].startswith("iVBORw0KGgo")  # PNG's signature in base 64


def test_a_trainer_shows_its_parameters_and_inputs(outputs):
    assert "<table>" in outputs[4]["text/html"]
    assert "w" in outputs[4]["text/html"]


def test_the_rest_is_a_line(outputs):
    assert outputs[5]["text/plain"].startswith("Best(epoch=")
    assert outputs[6]["text/plain"] == (
        "Dataset('points', arrays (10, 3), 1 minibatches of 10, shuffle=None)"
    )


def test_the_notebooks_own_bar_is_shown(executed):
    kinds = [output.get("data", {}) for output in executed.cells[1].outputs]
    assert any("application/vnd.jupyter.widget-view+json" in kind for kind in kinds)


def test_hyperparameters_show_what_differs_and_can_be_pasted():
    assert repr(Hyperparameters()) == "Hyperparameters()"
    given = Hyperparameters(learning_rate=0.01, decay=0.9, nesterov=True)
    assert eval(repr(given)) == given
    assert repr(given).count("=") == 4  # rms_halflife=None is what decay makes of it


def test_a_history_without_epochs_says_so():
    assert repr(History()) == "History(no epoch yet)"
    assert "0 epochs" in History()._repr_html_()


def test_a_record_without_a_monitor_leaves_its_cell_empty():
    history = History([Record(1, 10, 0.5, {"loss": 2.0}, {}), Record(2, 20, 1.0, {}, {"<a>": 1.0})])
    assert "<td></td>" in history._repr_html_()
    assert "valid &lt;a&gt;" in history._repr_html_()
    assert repr(history).startswith("History(2 epochs, 20 updates; last: train ")


def test_a_trained_best_is_short(mode):
    x = pt.matrix("x")
    w = pytensor.shared(np.zeros((100, 50)), name="w")
    trainer = Trainer(pt.sqr(x @ w - 1).mean(), mode=mode)
    trainer.minimize(np.ones((4, 100)), max_epochs=1)
    text = repr(trainer.best)
    assert len(text) < 120
    assert "w (100, 50)" in text
    assert f"loss={trainer.best.loss:.6g}" in text


def test_ready_batches_have_no_shape():
    assert repr(Dataset(lambda: [np.zeros(3)])) == (
        "Dataset('dataset', ready batches, 100 minibatches an epoch)"
    )


def test_texts_are_escaped():
    assert "<td>&lt;b&gt;</td>" in html_table(["x"], [["<b>"]])
