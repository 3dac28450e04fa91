"""Many devices of one process, virtual ones: the same numbers, divided as asked, or refused."""

import subprocess
import sys

import jax
import numpy as np
import pytensor
import pytensor.sparse
import pytensor.tensor as pt
import pytest
from jax.sharding import Mesh

from downhill_rms import Checkpoint, Dataset, Trainer
from tests.distributed.__main__ import BOUNDS, difference
from tests.distributed.program import CASES, arrays, case, regression

pytestmark = pytest.mark.filterwarnings(
    "ignore:Skipping:UserWarning", "ignore:The RandomType SharedVariables:UserWarning"
)

QUICK = ("plain", "float32", "dropout, updates_per_call", "parameters divided", "windows")


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CASES]
)
def test_the_numbers_are_those_of_one_device(name):
    expected = {f"{name}|{key}": value for key, value in case(None, **CASES[name]).items()}
    found = {f"{name}|{key}": value for key, value in case(4, **CASES[name]).items()}
    assert difference(found, expected, name) <= BOUNDS[CASES[name].get("dtype", "float64")]


def minimal(**options):
    x, w = pt.matrix("x"), pytensor.shared(np.zeros((8, 3)), name="w")
    return Trainer(pt.sqr(x @ w - 1).mean(), **options)


def test_samples_are_divided_and_parameters_are_copies():
    trainer = minimal(devices=4)
    batch = next(trainer.steps.bind(Dataset(np.ones((32, 8)), batch_size=16)).epoch())[0]
    assert batch[0].sharding.shard_shape(batch[0].shape) == (4, 8)
    trainer.step([np.ones((16, 8))])
    w = trainer.parameters.variables["w"].get_value(borrow=True)
    assert w.sharding.shard_shape(w.shape) == (8, 3)
    assert len(w.sharding.device_set) == 4


def test_large_parameters_and_their_accumulators_are_divided():
    trainer = minimal(devices=4, shard_above=23)
    trainer.step([np.ones((16, 8))])
    arrays = [trainer.parameters.variables["w"], *trainer.state.accumulators.values()]
    for variable in arrays:
        value = variable.get_value(borrow=True)
        assert value.sharding.shard_shape(value.shape) == (2, 3)
    trainer = minimal(devices=4, shard_above=24)  # it has no more than these
    trainer.step([np.ones((16, 8))])
    w = trainer.parameters.variables["w"].get_value(borrow=True)
    assert w.sharding.shard_shape(w.shape) == (8, 3)


def test_a_mesh_of_ones_own():
    devices = jax.devices()[2:4]
    trainer = minimal(devices=Mesh(np.array(devices), ("data",)))
    trainer.step([np.ones((16, 8))])
    w = trainer.parameters.variables["w"].get_value(borrow=True)
    assert w.sharding.device_set == set(devices)


@pytest.mark.parametrize("options", [{"mode": "FAST_COMPILE"}, {"mode": "tiered"}])
def test_modes_that_are_not_jaxs_are_refused(options):
    with pytest.raises(ValueError, match="mode is .*: many devices are JAX's"):
        minimal(devices=2, **options)


@pytest.mark.parametrize(
    ("devices", "kind", "text"),
    [
        (5, ValueError, "devices is 5, and JAX has 4 here"),
        (0, ValueError, "devices is 0"),
        ("some", ValueError, "devices is 'some': it is a count, 'all' or a Mesh"),
        (2.0, TypeError, "devices is 2.0"),
    ],
)
def test_devices_that_there_are_not_are_refused(devices, kind, text):
    with pytest.raises(kind, match=text):
        minimal(devices=devices)


def test_a_mesh_with_two_axes_is_refused():
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("data", "model"))
    with pytest.raises(ValueError, match="a mesh with the axes data, model"):
        minimal(devices=mesh)


def test_shard_above_needs_devices():
    with pytest.raises(ValueError, match="shard_above is 10 without devices"):
        minimal(shard_above=10)


def test_sparse_inputs_are_refused():
    x, w = pytensor.sparse.csr_matrix("x"), pytensor.shared(np.zeros((8, 3)), name="w")
    loss = pt.sqr(pytensor.sparse.structured_dot(x, w) - 1).mean()
    with pytest.raises(ValueError, match="input 'x'.* is a sparse matrix, and devices= is given"):
        Trainer(loss, devices=2)


def test_a_batch_size_that_the_devices_do_not_divide_is_warned_of():
    with pytest.warns(UserWarning, match="minibatches of 6 samples for 4 devices.*multiple of 4"):
        minimal(devices=4).minimize(np.ones((12, 8)), batch_size=6, max_epochs=1)


def test_a_sweep_with_devices_is_refused():
    with pytest.raises(ValueError, match="The trainer has devices=, and a sweep"):
        minimal(devices=2).sweep(np.ones((8, 8)), learning_rate=[0.1, 0.01], max_epochs=1)


def test_parts_of_minibatches_are_not_made_from_arrays():
    with pytest.raises(ValueError, match="local is given with dataset, which is made from arrays"):
        Dataset(np.ones((12, 8)), local=True)


@pytest.mark.parametrize(("first", "second"), [(4, None), (None, 4), (2, 4)])
def test_a_run_goes_on_with_another_number_of_devices(tmp_path, first, second):
    def train(devices, folder, epochs):
        trainer = regression("float64", dropout=True, devices=devices)
        trainer.minimize(
            Dataset(list(arrays("float64")), batch_size=16, rng=2),
            checkpoint=Checkpoint(folder, every_updates=3),
            resume=True,
            momentum=0.9,
            max_epochs=epochs,
            restore_best=False,
        )
        return trainer

    unbroken = train(None, tmp_path / "unbroken", 4)
    train(first, tmp_path / "other", 2)
    found = train(second, tmp_path / "other", 4)
    assert found.update_count == unbroken.update_count
    for name, value in unbroken.parameters.copy().items():
        np.testing.assert_allclose(found.parameters.copy()[name], value, rtol=1e-12)
    losses = [[r.train["loss"] for r in t.history] for t in (found, unbroken)]
    np.testing.assert_allclose(*losses, rtol=1e-12)


def test_calls_that_nobody_waits_for_come_to_an_end():
    """XLA's virtual devices deadlock on hundreds of calls in flight."""
    trainer = minimal(devices=4)
    trainer.minimize(np.ones((4000, 8)), batch_size=4, max_epochs=1, restore_best=False)
    assert trainer.update_count == 1000


def test_without_devices_jax_is_not_imported():
    program = (
        "import sys, numpy as np, pytensor, downhill_rms;"
        "w = pytensor.shared(1.0, name='w');"
        "downhill_rms.minimize(w**2, max_epochs=2, mode='FAST_COMPILE');"
        "assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True)
