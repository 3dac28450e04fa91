"""Validations of a random loss begin with the same numbers, and training does not notice them."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downhill_rms import Dataset, StopReason, Trainer
from tests.training.test_resume import OPTIONS, assert_equal, make, outcome

RNG = np.random.default_rng(11)
X = RNG.normal(size=(20, 3))
Y = X @ [1.0, -2.0, 0.5]
KINDS = [np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64]


def train_data():
    return Dataset([X, Y], batch_size=8, rng=1)


def noise_trainer(mode, kind=np.random.PCG64, seed=1):
    """A loss that is a mean of normal numbers; a monitor tells them apart batch by batch."""
    x = pt.vector("x")
    w = pytensor.shared(1.0, name="w")
    generator = pytensor.shared(np.random.Generator(kind(seed)), name="noise")
    _, noise = pt.random.normal(size=x.shape, rng=generator, return_next_rng=True)
    monitors = {"square": pt.sqr(noise.mean())}
    return Trainer(w * noise.mean() + 0 * x.sum(), monitors=monitors, mode=mode), generator


def still(*generators):
    return [repr(generator.get_value().bit_generator.state) for generator in generators]


def test_a_pass_gives_the_same_numbers_again(mode):
    trainer = make(mode)
    first = trainer.evaluate([X, Y])
    assert trainer.evaluate([X, Y]) == first
    trainer.step([X, Y], learning_rate=0.0)
    assert trainer.evaluate([X, Y]) == first
    assert make(mode).evaluate([X, Y]) == first


def test_parameters_alone_make_the_difference(mode):
    """Of two trainers with one set of parameters, whatever each has drawn before."""
    trainer, other = make(mode), make(mode)
    trainer.minimize(train_data(), max_epochs=2, learning_rate=0.1, restore_best=False)
    other.set_params(trainer.parameters.copy())
    assert other.evaluate([X, Y]) == trainer.evaluate([X, Y])
    assert make(mode).evaluate([X, Y])["loss"] != trainer.evaluate([X, Y])["loss"]


def test_minibatches_of_a_pass_have_numbers_of_their_own(mode):
    trainer, _ = noise_trainer(mode)
    means = [trainer.evaluate(Dataset(np.zeros(n), batch_size=50))["loss"] for n in (50, 100, 150)]
    second, third = 2 * means[1] - means[0], 3 * means[2] - 2 * means[1]
    assert len({round(value, 9) for value in (means[0], second, third)}) == 3
    # Normal numbers: the mean of fifty lies within five of its standard deviations.
    assert max(map(abs, (means[0], second, third))) < 5 / np.sqrt(50)


def test_several_generators_differ_from_one_another(mode):
    w = pytensor.shared(1.0, name="w")
    noises = [pt.random.shared_rng(seed=1).normal(size=())[1] for _ in range(2)]
    monitors = {f"noise {index}": noise for index, noise in enumerate(noises)}
    trainer = Trainer(w * sum(noises), monitors=monitors, mode=mode)
    found = trainer.evaluate(None)
    assert found["noise 0"] != found["noise 1"]


def test_numbers_of_validation_are_none_of_training(mode):
    """Whatever small seed a user takes, a validation is no look at the first minibatch."""
    for seed in range(5):
        trainer, _ = noise_trainer(mode, seed=seed)
        validation = trainer.evaluate([np.zeros(4)])["square"]
        assert trainer.step(np.zeros(4), learning_rate=0.0)["square"] != validation


@settings(max_examples=20, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**32),
    passes=st.lists(st.integers(1, 40), max_size=3),
)
def test_training_goes_on_as_though_nothing_was_evaluated(kind, seed, passes):
    trainer, generator = noise_trainer("FAST_COMPILE", kind, seed)
    expected = np.random.Generator(kind(seed))
    for size in passes:
        trainer.evaluate([np.zeros(size)])
        numbers = expected.normal(size=3)
        found = trainer.step(np.zeros(3), learning_rate=0.0)["square"]
        np.testing.assert_allclose(found, numbers.mean() ** 2, rtol=1e-12)
        assert type(generator.get_value().bit_generator) is kind


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_bit_generator_is_kept(kind, mode):
    """Numba reads foreign memory behind a bit generator of another kind."""
    trainer, generator = noise_trainer(mode, kind)
    seen = []

    def batches():
        seen.append(generator.get_value(borrow=True).bit_generator)
        return np.zeros(3)

    before = still(generator)
    first = trainer.evaluate(Dataset(batches, iteration_size=2))
    assert {type(bits) for bits in seen} == {kind}
    assert trainer.evaluate(Dataset(batches, iteration_size=2)) == first
    assert still(generator) == before


def test_an_error_in_a_pass_leaves_training_s_numbers(mode):
    trainer, generator = noise_trainer(mode)
    before, calls = still(generator), []

    def batches():
        calls.append(1)
        if len(calls) == 2:
            raise OSError("the disk is gone")
        return np.zeros(3)

    with pytest.raises(OSError, match="the disk is gone"):
        trainer.evaluate(Dataset(batches, iteration_size=3))
    assert still(generator) == before


def test_how_often_one_validates_does_not_change_training(mode):
    ends = []
    for every in (1, 2, 100):
        trainer = make(mode)
        trainer.minimize(train_data(), [X, Y], **OPTIONS | {"validate_every": every})
        state = trainer.state_dict()
        changed = ("param/", "accumulator/", "generator/")
        ends.append({n: v for n, v in state.items() if n.startswith(changed)})
        ends[-1] |= {"losses": [record.train for record in trainer.history]}
    assert_equal(ends[1], ends[0])
    assert_equal(ends[2], ends[0])


def test_patience_is_not_ended_or_prolonged_by_chance(mode):
    """Parameters that stay where they are never improve, however lucky a draw."""
    trainer = make(mode)
    trainer.minimize(
        train_data(), [X, Y], learning_rate=0.0, validate_every=1, patience=3, max_epochs=50
    )
    assert trainer.stop_reason is StopReason.PATIENCE
    assert trainer.epoch_count == 4
    assert trainer.best.epoch == 0
    assert {record.valid["loss"] for record in trainer.history} == {trainer.best.loss}


def test_the_best_is_what_evaluate_finds(mode):
    trainer = make(mode)
    options = {"learning_rate": 0.05, "validate_every": 1, "max_epochs": 5}
    trainer.minimize(train_data(), [X, Y], **options)
    assert trainer.evaluate([X, Y])["loss"] == trainer.best.loss


def test_a_run_that_is_taken_up_validates_as_it_would_have(mode):
    """Also where the process that takes it up has validated something else before."""
    whole = make(mode)
    whole.minimize(train_data(), [X, Y], **OPTIONS)
    trainer = make(mode)
    states = [trainer.state_dict() for _ in trainer.iterate(train_data(), [X, Y], **OPTIONS)]
    for state in states:
        other = make(mode)
        other.evaluate([X[:5], Y[:5]])
        other.load_state_dict(state)
        other.evaluate([X[:7], Y[:7]])
        other.minimize(train_data(), [X, Y], **OPTIONS)
        assert_equal(outcome(other), outcome(whole))


def test_predictions_go_on(mode):
    trainer, generator = noise_trainer(mode)
    x = trainer.graph.inputs[0]
    _, noise = pt.random.normal(size=x.shape, rng=generator, return_next_rng=True)
    expected = np.random.Generator(np.random.PCG64(1))
    for _ in range(2):
        found = trainer.predict(noise, np.zeros(4))
        np.testing.assert_allclose(found, expected.normal(size=4), rtol=1e-12)
        trainer.evaluate(np.zeros(4))


def test_a_carried_variable_s_noise_too(mode):
    x = pt.vector("x")
    w, before = pytensor.shared(1.0, name="w"), pytensor.shared(np.zeros(2), name="before")
    _, noise = pt.random.shared_rng(seed=1, name="noise").normal(size=(2,))
    loss = pt.sqr(x * w - before).mean()
    trainer = Trainer(loss, inputs=[x], carried={before: before / 2 + noise}, mode=mode)
    data = [[np.ones(2)]] * 5
    assert trainer.evaluate(data) == trainer.evaluate(data)


@pytest.mark.filterwarnings("ignore:Skipping", "ignore:The RandomType SharedVariables")
class TestJax:
    """Functions in JAX mode keep their generators' states inside."""

    @pytest.fixture(autouse=True)
    def has_jax(self):
        pytest.importorskip("jax")

    def test_a_pass_gives_the_same_numbers_again(self):
        trainer = make("JAX")
        first = trainer.evaluate([X, Y])
        assert trainer.evaluate([X, Y]) == first
        trainer.step([X, Y], learning_rate=0.0)
        assert trainer.evaluate([X, Y]) == first
        assert make("JAX").evaluate([X, Y]) == first
        assert trainer.evaluate(Dataset([X, Y], batch_size=8))["loss"] != first["loss"]

    def test_how_often_one_validates_does_not_change_training(self):
        ends = []
        for every in (1, 100):
            trainer = make("JAX")
            trainer.minimize(train_data(), [X, Y], **OPTIONS | {"validate_every": every})
            state = trainer.state_dict()
            changed = ("param/", "accumulator/", "generator/", "key/")
            ends.append({n: v for n, v in state.items() if n.startswith(changed)})
        assert any(name.startswith("key/") for name in ends[0])
        assert_equal(*ends)

    def test_states_that_have_keys_of_validation_are_read(self):
        """As earlier versions wrote them."""
        trainer, other = make("JAX"), make("JAX")
        trainer.minimize(train_data(), [X, Y], **OPTIONS)
        keys = {f"key/evaluation/{i}": np.array([1, 2], dtype="uint32") for i in range(2)}
        other.load_state_dict(trainer.state_dict() | keys)
        assert_equal(outcome(other), outcome(trainer))
        assert other.evaluate([X, Y]) == trainer.evaluate([X, Y])
