"""Random generators wherever they stand: each draw of each call has new numbers."""

import math
import warnings

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.compile.builders import OpFromGraph
from pytensor.graph.replace import clone_replace
from pytensor.tensor.random.type import RandomGeneratorType

from downhill_rms import Dataset, Trainer
from downhill_rms.rule.graph import read_graph

GENERATOR = RandomGeneratorType()


def shared(value, name):
    return pytensor.shared(np.asarray(value), name=name)


def shared_generator(name="rng"):
    return pytensor.shared(np.random.default_rng(1), name=name)


def draws(trainer, times=4):
    return [trainer.step()["noise"] for _ in range(times)]


def noisy_trainer(noise, mode, **kwargs):
    w = shared(1.0, "w")
    return Trainer((w * noise) ** 2, params=[w], monitors={"noise": noise}, mode=mode, **kwargs)


def test_generators_advance_at_every_update(mode):
    """downhill repeated the same dropout mask unless the user passed updates."""
    rng = pt.random.shared_rng(seed=1, name="rng")
    _, noise = rng.normal()
    seen = draws(noisy_trainer(noise, mode))
    expected = np.random.default_rng(1).normal(size=4)
    np.testing.assert_allclose(seen, expected)


def test_generators_advance_in_evaluation_too(mode):
    rng = pt.random.shared_rng(seed=1, name="rng")
    _, noise = rng.normal()
    trainer = noisy_trainer(noise, mode)
    one, two = (trainer.evaluate(Dataset(None, iteration_size=n))["noise"] for n in (1, 2))
    assert one != two


def test_chained_draws_advance_to_the_end(mode):
    rng = pt.random.shared_rng(seed=1, name="rng")
    next_rng, first = rng.normal()
    _, second = next_rng.normal()
    seen = draws(noisy_trainer(first + second, mode))
    expected = np.random.default_rng(1).normal(size=8).reshape(4, 2).sum(axis=1)
    np.testing.assert_allclose(seen, expected)


def test_generator_inside_a_scan_advances(mode):
    def draw(rng):
        next_rng, noise = pt.random.normal(rng=rng, return_next_rng=True)
        return next_rng, noise

    rng = pt.random.shared_rng(seed=1, name="rng")
    _, noise = pytensor.scan(draw, outputs_info=[rng, None], n_steps=3, return_updates=False)
    seen = draws(noisy_trainer(noise.sum(), mode))
    expected = np.random.default_rng(1).normal(size=12).reshape(4, 3).sum(axis=1)
    np.testing.assert_allclose(seen, expected)


def test_updates_of_the_user_take_precedence(mode):
    rng = pt.random.shared_rng(seed=1, name="rng")
    _, noise = rng.normal()
    seen = draws(noisy_trainer(noise, mode, updates={rng: rng}))
    assert len(set(seen)) == 1


def test_one_state_behind_two_draws_warns():
    rng = shared_generator("rng")
    _, a = pt.random.normal(size=2, rng=rng, return_next_rng=True)
    _, b = pt.random.normal(size=3, rng=rng, return_next_rng=True)
    with pytest.warns(UserWarning, match="'rng' .* feeds 2"):
        read_graph(shared(1.0, "w") * (a.sum() + b.sum()))


def normal(rng, **kwargs):
    return pt.random.normal(rng=rng, return_next_rng=True, **kwargs)


def drawing(draws=1, returned=-1):
    """An Op that draws from its generator, and which of its states it returns."""
    states, numbers = [GENERATOR("inside")], []
    for _ in range(draws):
        state, number = normal(states[-1])
        states.append(state)
        numbers.append(number)
    outputs = [sum(numbers)] if returned is None else [sum(numbers), states[returned]]
    return OpFromGraph([states[0]], outputs)


def expected(times=4, each=1):
    return np.random.default_rng(1).normal(size=(times, each)).sum(axis=1)


def test_generator_inside_an_op_advances(mode):
    """pm.Minibatch draws its indices so."""
    noise, _ = drawing()(shared_generator())
    np.testing.assert_allclose(draws(noisy_trainer(noise, mode)), expected())


def test_generator_advances_through_ops_to_the_end(mode):
    first, state = drawing(2)(shared_generator())
    second, state = drawing(1)(state)
    _, third = normal(state)
    seen = draws(noisy_trainer(first + second + third, mode))
    np.testing.assert_allclose(seen, expected(each=4))


def test_generator_inside_an_op_inside_an_op_advances(mode):
    inside = GENERATOR("inside")
    outer = OpFromGraph([inside], drawing(2)(inside))
    noise, _ = outer(shared_generator())
    np.testing.assert_allclose(draws(noisy_trainer(noise, mode)), expected(each=2))


def test_generator_inside_an_op_inside_a_scan_advances(mode):
    draw = drawing()
    _, noise = pytensor.scan(
        lambda state: list(reversed(draw(state))),
        outputs_info=[shared_generator(), None],
        n_steps=3,
        return_updates=False,
    )
    seen = draws(noisy_trainer(noise.sum(), mode))
    np.testing.assert_allclose(seen, expected(each=3))


def test_generator_inside_a_scan_inside_an_op_advances(mode):
    inside = GENERATOR("inside")
    state, noise = pytensor.scan(
        normal, outputs_info=[inside, None], n_steps=3, return_updates=False
    )
    noise, _ = OpFromGraph([inside], [noise.sum(), state])(shared_generator())
    np.testing.assert_allclose(draws(noisy_trainer(noise, mode)), expected(each=3))


def test_generator_that_an_op_is_given_and_does_not_use(mode):
    x, inside = pt.scalar("x"), GENERATOR("inside")
    idle = OpFromGraph([x, inside], [2 * x], on_unused_input="ignore")
    rng = shared_generator()
    _, noise = normal(rng)
    np.testing.assert_allclose(draws(noisy_trainer(idle(noise, rng), mode)), 2 * expected())


def test_dropout_inside_an_op_is_differentiated_with_the_mask_of_its_loss(mode):
    """The gradient draws again, from the same state."""
    w, inside = shared(np.ones(50), "w"), GENERATOR("inside")
    values = pt.vector("values")
    state, keep = pt.random.bernoulli(0.5, size=50, rng=inside, return_next_rng=True)
    dropout = OpFromGraph([values, inside], [values * keep, state])
    dropped, _ = dropout(w, shared_generator())
    trainer = Trainer(dropped.sum(), mode=mode)
    oracle = np.random.default_rng(1)
    for _ in range(3):
        before = w.get_value()
        trainer.step(learning_rate=0.1)
        moved = w.get_value() != before
        np.testing.assert_array_equal(moved, oracle.binomial(1, 0.5, size=50).astype(bool))


@pytest.mark.parametrize(
    "op",
    [drawing(returned=None), drawing(2, returned=1), drawing(2, returned=0)],
    ids=["no state", "an early state", "the same state"],
)
def test_an_op_that_keeps_its_last_state_is_refused(op):
    outputs = op(shared_generator())
    noise = outputs[0] if isinstance(outputs, list) else outputs
    with pytest.raises(ValueError, match="OpFromGraph.* draws from 'rng' .* last state"):
        read_graph(shared(1.0, "w") * noise)


def test_a_scan_that_draws_from_one_state_at_every_step_is_refused():
    def draw(state):
        _, noise = normal(state)
        return state, noise

    _, noise = pytensor.scan(
        draw, outputs_info=[shared_generator(), None], n_steps=3, return_updates=False
    )
    with pytest.raises(ValueError, match="Scan.* draws from 'rng' .* last state"):
        read_graph(shared(1.0, "w") * noise.sum())


@pytest.mark.filterwarnings("ignore:Scan return signature:DeprecationWarning")
def test_a_scan_that_gives_the_next_state_as_an_update_advances(mode):
    """Scan copies the draw for each of its outputs."""

    def draw():
        state, noise = normal(rng)
        return noise, {rng: state}

    rng = shared_generator()
    noise, _ = pytensor.scan(draw, n_steps=3)
    np.testing.assert_allclose(draws(noisy_trainer(noise.sum(), mode)), expected(each=3))


@pytest.mark.parametrize("inside", [False, True])
def test_a_later_state_behind_two_draws_warns(inside):
    rng = GENERATOR("rng") if inside else shared_generator()
    state, first = normal(rng)
    (last, second), (_, third) = normal(state), normal(state, size=2)
    noise = first + second + third.sum()
    if inside:
        noise, _ = OpFromGraph([rng], [noise, last])(shared_generator())
    with pytest.warns(UserWarning, match="'rng' .* feeds 2") as caught:
        read_graph(shared(1.0, "w") * noise)
    assert caught[0].filename == __file__


def test_an_op_that_keeps_its_last_state_may_be_advanced_by_hand(mode):
    rng = shared_generator()
    noise = drawing(returned=None)(rng)
    state, _ = normal(rng)
    seen = draws(noisy_trainer(noise, mode, updates=[(rng, state)]))
    np.testing.assert_allclose(seen, expected())


def test_generators_that_are_constants_are_refused():
    """They would give the same numbers at every call."""
    constant = GENERATOR.make_constant(np.random.default_rng(1))
    _, noise = normal(constant, size=3)
    op = OpFromGraph([], [noise.sum()])
    for loss in (noise.sum(), op()):
        with pytest.raises(ValueError, match=r"normal.* draws from a constant generator"):
            read_graph(shared(1.0, "w") * loss)


def test_an_op_that_keeps_its_last_state_may_be_advanced_by_a_default_update(mode):
    rng = shared_generator()
    default_update(rng, normal(rng)[0])
    seen = draws(noisy_trainer(drawing(returned=None)(rng), mode))
    np.testing.assert_allclose(seen, expected())


def default_update(variable, new):
    with pytest.warns(DeprecationWarning, match="default_update"):
        variable.default_update = new


def test_a_generator_that_only_a_default_update_reaches_advances(mode):
    rng, buffer = shared_generator(), shared(0.0, "buffer")
    default_update(buffer, normal(rng)[1])
    trainer = noisy_trainer(buffer * 1, mode)
    np.testing.assert_allclose(draws(trainer), [0, *expected(3)])
    assert [v.name for v, _ in trainer.graph.updates] == ["buffer", "rng"]


def random_stream_normal(**kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and there
        stream = pt.random.utils.RandomStream(seed=1)
        noise = stream.normal(**kwargs)
    ((rng, _),) = stream.state_updates
    rng.name = "rng"
    rng.set_value(np.random.default_rng(1))
    return noise


def test_default_updates_of_default_updates_are_known_and_saved(mode):
    """PyTensor assigns them itself, but a checkpoint has only what the graph knows."""
    buffer = shared(0.0, "buffer")
    default_update(buffer, random_stream_normal())
    trainer = noisy_trainer(buffer * 1, mode)
    trainer.step()
    state = trainer.state_dict()
    seen = draws(trainer)
    trainer.load_state_dict(state)
    trainer.step()
    assert trainer.state_dict()["generator/0_rng"] != state["generator/0_rng"]
    np.testing.assert_allclose(seen, expected(4))


def test_random_streams_advance(mode):
    np.testing.assert_allclose(draws(noisy_trainer(random_stream_normal(), mode)), expected())


def test_a_copy_of_a_random_stream_s_draw_advances(mode):
    """clone_replace copies draws and leaves default updates to those of the old graph."""
    x = pt.vector("x")
    noise = random_stream_normal(size=x.shape).sum()
    copy = clone_replace(noise, {x: shared(np.zeros(3), "data")})
    np.testing.assert_allclose(draws(noisy_trainer(copy, mode)), expected(each=3))


def test_inputs_of_default_updates_are_inputs():
    """Nothing else would feed them."""
    x, mean = pt.scalar("x"), shared(0.0, "mean")
    default_update(mean, 0.9 * mean + 0.1 * x)
    assert [v.name for v in read_graph(shared(1.0, "w") * mean).inputs] == ["x"]


def test_patience_says_that_it_judges_single_draws(mode):
    _, noise = pt.random.normal(rng=shared_generator(), return_next_rng=True)
    trainer = noisy_trainer(noise, mode)
    with pytest.warns(UserWarning, match="judged by a single draw .* patience=math.inf") as caught:
        trainer.minimize(max_epochs=2)
    assert caught[0].filename == __file__
    trainer.minimize(max_epochs=2, patience=math.inf)


def test_a_loss_without_noise_does_not_warn(mode):
    Trainer(pt.sqr(shared(1.0, "w")), mode=mode).minimize(max_epochs=2)


def test_minibatches_of_pymc(mode):
    pm = pytest.importorskip("pymc")
    rows = np.arange(20.0).reshape(10, 2)
    x, y = pm.Minibatch(rows, rows.sum(axis=1), batch_size=3)
    w = shared(np.zeros(2), "w")
    trainer = Trainer(pt.sqr(x @ w - y).mean(), monitors={"sum": y.sum()}, mode=mode)
    seen = [trainer.step(learning_rate=0.01)["sum"] for _ in range(8)]
    assert len(set(seen)) > 4
    assert set(np.round(np.diff(seen))) <= set(4.0 * np.arange(-27, 28))
    trainer.minimize(max_updates=400, patience=math.inf, restore_best=False, learning_rate=0.01)
    np.testing.assert_allclose(w.get_value(), 1, atol=0.05)


@pytest.mark.parametrize("name", ["mixture", "censored", "walk"])
def test_random_variables_of_pymc_that_are_ops(mode, name):
    pm = pytest.importorskip("pymc")
    noise = {
        "mixture": lambda: pm.Mixture.dist(
            [0.5, 0.5], [pm.Normal.dist(-1, 0.1), pm.Normal.dist(1, 0.1)]
        ),
        "censored": lambda: pm.Censored.dist(pm.Normal.dist(), lower=-1, upper=None) * 1,
        "walk": lambda: pm.RandomWalk.dist(
            innovation_dist=pm.Normal.dist(), init_dist=pm.Normal.dist(), steps=3
        ).sum(),
    }[name]()
    assert len(set(draws(noisy_trainer(noise, mode), 6))) > 2
