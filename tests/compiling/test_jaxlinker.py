"""What JAX mode hands over to XLA, and what must not be lost by it."""

import subprocess
import sys

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.compile.mode import JAX, Mode, get_mode
from pytensor.link.jax.linker import JAXLinker

from downhill_rms import Dataset, Trainer
from downhill_rms.compiling.jaxlinker import DonatingLinker
from downhill_rms.compiling.modes import training_mode

jax = pytest.importorskip("jax")
# PyTensor tells which run-time checks JAX drops, and that JAX copies generators.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Skipping:UserWarning", "ignore:The RandomType SharedVariables:UserWarning"
)
X = np.random.default_rng(0).normal(size=(40, 3)).astype("float32")
Y = (X @ np.array([1, -2, 0.5], dtype="float32")).astype("float32")


@pytest.fixture
def mode():
    return get_mode(training_mode("JAX"))


@pytest.fixture(autouse=True)
def setting():
    """JAX's own setting, as it was."""
    before = jax.config.jax_enable_x64
    yield
    jax.config.update("jax_enable_x64", before)


def shared(value, name=None):
    return pytensor.shared(np.asarray(value, dtype="float64"), name=name)


def make(**options):
    x, y = pt.fmatrix("x"), pt.fvector("y")
    w = pytensor.shared(np.zeros(3, dtype="float32"), name="w")
    return Trainer(pt.sqr(x @ w - y).mean(), inputs=[x, y], mode="JAX", **options), w


def test_what_an_update_assigns_is_donated(mode):
    w, other = shared([1.0, 2.0]), shared([3.0, 4.0])
    x = pt.dvector("x")
    function = pytensor.function([x], w.sum(), updates=[(w, w + other * x)], mode=mode)
    linker = function.maker.linker
    assert isinstance(linker, DonatingLinker)
    (index,) = linker.donated()
    assert index == function.maker.fgraph.update_mapping[1]
    function(np.ones(2))
    old, kept = w.get_value(borrow=True), other.get_value(borrow=True)
    function(np.ones(2))
    assert old.is_deleted()
    np.testing.assert_array_equal(kept, [3, 4])
    np.testing.assert_array_equal(w.get_value(), [7, 10])


def test_another_linker_is_left_as_it_is():
    class Theirs(JAXLinker):
        pass

    assert type(get_mode(training_mode(Mode(Theirs(), JAX.provided_optimizer))).linker) is Theirs


def test_copies_and_views_keep_their_values():
    trainer, w = make()
    trainer.step([X, Y], learning_rate=0.1)
    copy, view = w.get_value(), np.asarray(w.get_value(borrow=True))
    state = trainer.state_dict()
    before = np.array(copy)
    for _ in range(3):
        trainer.step([X, Y])
    for kept in (copy, view, state["param/w"]):
        np.testing.assert_array_equal(kept, before)
    assert not np.array_equal(w.get_value(), before)


@pytest.mark.parametrize("size", [3, 100_000])
def test_arrays_of_the_users_are_not_overwritten(mode, size):
    """XLA computes with aligned arrays of NumPy's where they are."""
    memory = np.zeros(size + 8)
    theirs = memory[(-memory.ctypes.data // 8) % 8 :][:size]
    assert theirs.ctypes.data % 64 == 0
    w = pytensor.shared(theirs, borrow=True)
    function = pytensor.function([], [], updates=[(w, w + 1)], mode=mode)
    for count in (1, 2):
        function()
        assert not theirs.any()
        np.testing.assert_array_equal(w.get_value(borrow=True), count)
        w.set_value(w.get_value(borrow=True), borrow=True)
    w.set_value(theirs, borrow=True)
    function()
    assert not theirs.any()


def test_variables_that_share_an_array_part(mode):
    a, b, c = shared([1.0, 2.0]), shared([0.0, 0.0]), shared([0.0, 0.0])
    both = [(a, a + b), (b, 2 * b), (c, c - 1)]
    function = pytensor.function([], [], updates=both, mode=mode)
    function()
    b.set_value(a.get_value(borrow=True), borrow=True)
    c.set_value(a.get_value(borrow=True), borrow=True)
    for _ in range(2):
        function()
    for variable, value in ((a, [4, 8]), (b, [4, 8]), (c, [-1, 0])):
        np.testing.assert_array_equal(variable.get_value(), value)


# What two variables are assigned, and the same in NumPy.
ASSIGNED = {
    "exchanged": lambda a, b: (b, a),
    "moved on": lambda a, b: (b, b + 1),
    "the same": lambda a, b: (a + b, a + b),
    "one as it was": lambda a, b: (a, b + a),
    "forgotten": lambda a, b: (0 * b + 5, b * 2),
    "shifted": lambda a, b: (a[::-1], b[::-1]),
}


@pytest.mark.parametrize("name", ASSIGNED)
def test_values_that_are_handed_on(mode, name):
    values = [np.array([1.0, 2.0]), np.array([3.0, 5.0])]
    a, b = map(shared, values)
    new = ASSIGNED[name](a, b)
    outputs = [a, b, *new, a + b]
    function = pytensor.function([], outputs, updates=[(a, new[0]), (b, new[1])], mode=mode)
    returned = []
    for _ in range(4):
        expected = [*values, *ASSIGNED[name](*values), values[0] + values[1]]
        values = [np.array(value) for value in expected[2:4]]
        returned.append((function(), expected))
        for variable, value in zip((a, b), values, strict=True):
            np.testing.assert_array_equal(np.array(variable.get_value()), value)
    for found, expected in returned:  # by later calls no output was deleted
        for got, want in zip(found, expected, strict=True):
            np.testing.assert_array_equal(got, want)


def test_a_constant_value_is_assigned_again_and_again(mode):
    w, n = shared([1.0, 2.0]), shared(0.0)
    updates = [(w, pt.zeros(2)), (n, n + w.sum())]
    function = pytensor.function([], w.sum(), updates=updates, mode=mode)
    assert [float(function()) for _ in range(3)] == [3, 0, 0]
    assert float(n.get_value()) == 3


def test_averages_take_the_parameters_place_and_give_it_back():
    ends = []
    for kind in ("FAST_COMPILE", "JAX"):
        x = pt.matrix("x")
        w = shared([1.0, 2.0, 3.0], name="w")
        trainer = Trainer(pt.sqr(x - w).mean(), inputs=[x], mode=kind)
        data = Dataset(X.astype("float64"), batch_size=8, rng=0)
        options = {"average": "ema", "average_halflife": 3, "learning_rate": 0.05}
        trainer.minimize(data, X.astype("float64"), max_epochs=4, validate_every=1, **options)
        losses = [record.valid["loss"] for record in trainer.history]
        ends.append([*losses, *np.array(w.get_value()), *trainer.state_dict()["best/param/w"]])
    np.testing.assert_allclose(*ends, rtol=1e-10)


def test_a_first_update_is_taken_back():
    trainer, w = make()
    broken = np.where(np.arange(40) == 7, np.nan, Y).astype("float32")
    with pytest.raises(ValueError, match="The loss is nan"):
        trainer.step([X, broken], learning_rate=0.1)
    assert not np.any(w.get_value())
    losses = [trainer.step([X, Y])["loss"] for _ in range(5)]
    assert losses == sorted(losses, reverse=True)


def dropped(together):
    """A network with dropout in a scan, whose updates JAX's own generators enter."""
    x, y = pt.ftensor3("x"), pt.fmatrix("y")
    rng = np.random.default_rng(3)
    u, v = (pytensor.shared(rng.normal(size=(3, 3)).astype("float32"), name=n) for n in "uv")
    _, mask = pt.random.shared_rng(seed=1, name="dropout").bernoulli(0.7, size=(5, 3))

    def step(row, state, generator, u):
        following, noise = generator.normal(size=(5, 3))
        noise = np.float32(0.1) * noise.astype("float32")
        return pt.tanh(row + state @ u + noise), following

    states, _ = pytensor.scan(
        step,
        sequences=[x * mask.astype("float32")],
        outputs_info=[pt.zeros((5, 3), dtype="float32"), pt.random.shared_rng(seed=2, name="in")],
        non_sequences=[u],
        return_updates=False,
    )
    loss = pt.sqr(states[-1] @ v - y).mean()
    trainer = Trainer(loss, inputs=[x, y], params=[u, v], mode="JAX")
    generator = np.random.default_rng(4)
    batches = [
        [generator.normal(size=shape).astype("float32") for shape in ((4, 5, 3), (5, 3))]
        for _ in range(6)
    ]
    options = {"momentum": 0.9, "learning_rate": 0.01, "updates_per_call": together}
    return trainer, batches, options | {"restore_best": False}


@pytest.mark.parametrize("together", [1, 3])
def test_generators_of_scans_and_dropout_survive_a_resume(tmp_path, together):
    """A run that is stopped and taken up by another trainer is the one that never was."""
    trainer, batches, options = dropped(together)
    trainer.minimize(batches, max_epochs=4, **options)
    expected = trainer.state_dict()
    assert len({record.train["loss"] for record in trainer.history}) == 4
    for epochs in (2, 4):
        trainer, batches, options = dropped(together)
        file = tmp_path / "state.npz"
        trainer.minimize(batches, max_epochs=epochs, checkpoint=file, resume=epochs > 2, **options)
    found = trainer.state_dict()
    keys = [name for name in expected if name.startswith(("param/", "accumulator/", "key/"))]
    assert any(name.startswith("key/update/") for name in keys)
    for name in keys:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def labelled(dtype):
    """A loss of numbers and labels, and an integer beyond 32 bits that updates count."""
    x, y = pt.matrix("x", dtype=dtype), pt.lvector("y")
    w = pytensor.shared(np.zeros((3, 4), dtype), name="w")
    count = pytensor.shared(np.int64(2**40), name="count")
    logits = x @ w
    loss = (pt.logsumexp(logits, axis=1) - logits[pt.arange(y.shape[0]), y]).mean()
    trainer = Trainer(
        loss, inputs=[x, y], updates=[(count, count + y.sum())], params=[w], mode="JAX"
    )
    return trainer, [X.astype(dtype), np.arange(40) % 4], w, count


def test_single_precision_leaves_jax_as_the_user_has_it():
    jax.config.update("jax_enable_x64", False)
    trainer, batch, w, count = labelled("float32")
    for _ in range(2):
        trainer.step(batch)
    trainer.evaluate(batch)
    assert not jax.config.jax_enable_x64
    assert jax.numpy.zeros(3).dtype == "float32"
    assert (w.get_value(borrow=True).dtype, count.get_value(borrow=True).dtype) == (
        "float32",
        "int64",
    )
    assert int(count.get_value()) == 2**40 + 2 * batch[1].sum()


def test_double_precision_sets_jax_to_it():
    """The parameters are then JAX's arrays, with which a user goes on to compute."""
    jax.config.update("jax_enable_x64", False)
    trainer, batch, w, _ = labelled("float64")
    trainer.step(batch)
    assert jax.config.jax_enable_x64
    assert (w.get_value() + jax.numpy.zeros(())).dtype == "float64"


PROGRAM = """
import jax, sys, warnings
import numpy as np, pytensor, pytensor.tensor as pt
from downhill_rms import Trainer
assert "pytensor.link.jax.dispatch" not in sys.modules
w = pytensor.shared(np.zeros(3, "float32"), name="w")
x = pt.fmatrix("x")
trainer = Trainer(pt.sqr(x @ w - 1).mean(), inputs=[x], mode="JAX")
trainer.step(np.ones((4, 3), "float32"))
print(jax.config.jax_enable_x64, w.get_value(borrow=True).dtype)
"""


@pytest.mark.parametrize("own", ["0", "1"])
@pytest.mark.parametrize("floatx", ["float32", "float64"])
def test_telling_pytensor_of_jax_changes_no_setting(own, floatx, monkeypatch):
    monkeypatch.setenv("JAX_ENABLE_X64", own)
    flags = f"{pytensor.config.base_compiledir}"
    monkeypatch.setenv("PYTENSOR_FLAGS", f"base_compiledir={flags},cxx=,floatX={floatx}")
    command = [sys.executable, "-W", "error::UserWarning", "-c", PROGRAM]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stdout.split() == [str(own == "1"), "float32"], result.stderr
