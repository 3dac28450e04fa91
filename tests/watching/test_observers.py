"""Observers, read back by the programs that they write for."""

import math
import sys
import time

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from downhill_rms import Dataset, Trainer
from downhill_rms.rule.hyperparameters import Hyperparameters
from downhill_rms.watching.history import Record
from downhill_rms.watching.observers import MLflow, TensorBoard

# The readers' own imports and protocol buffers warn.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def train(observer, mode):
    """A real run of four epochs, every second one validated; its history."""
    x = pt.vector("x")
    w = pytensor.shared(0.0, name="w")
    loss = pt.sqr(x - w).mean()
    trainer = Trainer(loss, monitors={"|w|": abs(w)}, monitor_gradients=True, mode=mode)
    data = Dataset([np.arange(12.0)], batch_size=4)
    options = {"learning_rate": 0.1, "validate_every": 2, "max_epochs": 4}
    trainer.minimize(data, observers=[observer], **options)
    return trainer.history


def expected(history, part, monitor):
    """Steps and values of one monitor, from the history."""
    records = [r for r in history if part == "train" or r.validated]
    return [(r.updates, getattr(r, part)[monitor]) for r in records]


def record(updates, loss, **more):
    return Record(updates, updates, 0.1, {"loss": loss, **more}, {"loss": 1.0})


# TensorBoard


def read_events(directory):
    """What TensorBoard itself reads, by name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    events.Reload()
    names = events.Tags()["scalars"]
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in names}


def test_tensorboard_reads_every_scalar(tmp_path, mode):
    with TensorBoard(tmp_path) as board:
        history = train(board, mode)
    events = read_events(tmp_path)
    monitors = ["loss", "|w|", "grad(w)"]
    for part in ("train", "valid"):
        for monitor in monitors:
            found = events[f"{part}/{monitor}"]
            wanted = expected(history, part, monitor)
            assert [step for step, _ in found] == [step for step, _ in wanted]
            np.testing.assert_allclose([v for _, v in found], [v for _, v in wanted], rtol=1e-6)
    assert [value for _, value in events["learning_rate"]] == [np.float32(0.1)] * 4
    assert set(events) == {
        "learning_rate",
        *(f"{p}/{m}" for p in ("train", "valid") for m in monitors),
    }


def test_tensorboard_reads_along_while_training_goes_on(tmp_path):
    with TensorBoard(tmp_path) as board:
        for epoch in (1, 2, 3):
            board(record(epoch, 1.0 / epoch))
            assert len(read_events(tmp_path)["train/loss"]) == epoch


@pytest.mark.parametrize("resumed", [True, False], ids=["resumed", "rolled back"])
def test_tensorboard_shows_the_epochs_that_came_again_once(resumed, tmp_path):
    board = TensorBoard(tmp_path)
    for updates in (10, 20, 30):
        board(record(updates, 1.0))
    if resumed:
        board.close()
        time.sleep(1.1)  # TensorBoard orders files by the second, then by texts of counters
        board = TensorBoard(tmp_path)
    for updates in (20, 30, 40):
        board(record(updates, 0.5))
    board.close()
    board.close()  # again is no error
    assert read_events(tmp_path)["train/loss"] == [(10, 1.0), (20, 0.5), (30, 0.5), (40, 0.5)]


# MLflow


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A local store of files."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 asks for a database
    return (tmp_path / "mlruns").as_uri()


def query(store, run_id):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store)
    run = client.get_run(run_id)
    names = run.data.metrics
    return run, {
        n: [(m.step, m.value) for m in client.get_metric_history(run_id, n)] for n in names
    }


def test_mlflow_holds_every_metric(store, mode):
    with MLflow("lines", "first", store) as flow:
        history = train(flow, mode)
    run, metrics = query(store, flow.run_id)
    assert metrics["train/loss"] == expected(history, "train", "loss")
    assert metrics["valid/loss"] == expected(history, "valid", "loss")
    assert metrics["train/grad_w_"] == expected(history, "train", "grad(w)")
    assert metrics["train/_w_"] == expected(history, "train", "|w|")
    assert [value for _, value in metrics["learning_rate"]] == [0.1] * 4
    assert len(metrics) == 7
    assert (run.info.run_name, run.info.status) == ("first", "FINISHED")


def halving(t):
    return 0.5**t


def test_mlflow_holds_the_hyperparameters_as_texts(store):
    given = Hyperparameters(learning_rate=halving, momentum=0.9)
    with MLflow("lines", tracking_uri=store, params=given) as flow:
        pass
    params = query(store, flow.run_id)[0].data.params
    assert set(params) == set(Hyperparameters.names())
    assert params["learning_rate"] == "halving"
    assert (params["momentum"], params["decay"]) == ("0.9", "None")
    assert params["nesterov"] == "False"


def test_mlflow_gives_every_monitor_a_name_of_its_own(store):
    monitors = {"grad(w)": 1.0, "grad[w]": 2.0, "a": 3.0, "a/b": 4.0, "a:b": 5.0, "θ 1-.": 6.0}
    with MLflow(tracking_uri=store) as flow:
        for updates in (1, 2):
            flow(record(updates, 0.0, **monitors))
    metrics = query(store, flow.run_id)[1]
    names = ("grad_w_", "grad_w__", "a", "a_b", "a_b_", "θ 1-.")
    for name, value in zip(names, monitors.values(), strict=True):
        assert metrics[f"train/{name}"] == [(1, value), (2, value)]


def test_mlflow_by_default_logs_to_its_own_database(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    with MLflow() as flow:
        flow(record(5, 1.0))
    run, metrics = query("sqlite:///mlflow.db", flow.run_id)
    assert metrics["train/loss"] == [(5, 1.0)]
    assert run.info.experiment_id == "0"


def test_mlflow_runs_live_side_by_side_in_one_experiment(store):
    import mlflow

    with MLflow("lines", "a", store) as a, MLflow("lines", "b", store) as b:
        a(record(5, 1.0))
        b(record(5, 2.0))
        assert mlflow.active_run() is None
    (run_a, metrics_a), (run_b, metrics_b) = query(store, a.run_id), query(store, b.run_id)
    for run in (run_a, run_b):
        assert mlflow.MlflowClient(store).get_experiment(run.info.experiment_id).name == "lines"
    assert metrics_a["train/loss"] == [(5, 1.0)]
    assert metrics_b["train/loss"] == [(5, 2.0)]


def test_an_exception_marks_the_mlflow_run_as_failed(store):
    with pytest.raises(RuntimeError), MLflow(tracking_uri=store) as flow:
        raise RuntimeError
    assert query(store, flow.run_id)[0].info.status == "FAILED"


def test_an_mlflow_run_ends_once(store):
    with MLflow(tracking_uri=store) as flow:
        assert query(store, flow.run_id)[0].info.status == "RUNNING"
        flow.close("KILLED")
    assert query(store, flow.run_id)[0].info.status == "KILLED"


def test_mlflow_takes_values_that_are_not_finite(store):
    with MLflow(tracking_uri=store) as flow:
        flow(record(1, math.inf, nan=math.nan))
    metrics = query(store, flow.run_id)[1]
    assert metrics["train/loss"] == [(1, math.inf)]
    assert math.isnan(metrics["train/nan"][0][1])


# Neither


@pytest.mark.parametrize(
    ("observer", "package"), [(TensorBoard, "tensorboard.compat.proto"), (MLflow, "mlflow")]
)
def test_a_missing_package_is_named_with_its_extra(observer, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r'pip install "downhill_rms\[(tensorboard|mlflow)\]"'):
        observer(str(tmp_path))
