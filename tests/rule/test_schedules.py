"""Ready-made schedules: optax's values, what they refuse, and how they are read from a text."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

import downhill_rms as dr
from downhill_rms.rule import schedules
from downhill_rms.rule.schedules import (
    cosine,
    exponential,
    inverse_sqrt,
    linear_warmup,
    one_cycle,
    parse_schedule,
    piecewise,
)

with np.load(Path(__file__).parents[1] / "goldens" / "schedules.npz") as file:
    GOLDENS = dict(zip(json.loads(str(file["schedules"])), file["rates"], strict=True))


def rates(schedule, updates):
    """Learning rates of the first updates, as a trainer's function computes them."""
    t = pt.lscalar("t")
    function = pytensor.function([t], schedule(t))
    return np.array([function(count) for count in range(1, updates + 1)])


@pytest.mark.parametrize("text", GOLDENS)
def test_optax_has_the_same_values(text):
    golden = GOLDENS[text]
    found = rates(parse_schedule(text), len(golden))
    np.testing.assert_allclose(found, golden, rtol=1e-12, atol=1e-19)


def test_the_inverse_square_root_is_that_of_the_paper():
    step, width, warmup = np.arange(1, 201.0), 512, 40
    expected = width**-0.5 * np.minimum(step**-0.5, step * warmup**-1.5)
    schedule = inverse_sqrt((width * warmup) ** -0.5, warmup)
    np.testing.assert_allclose(rates(schedule, 200), expected, rtol=1e-12)


def test_in_single_precision_data_they_are_computed_in_double():
    with pytensor.config.change_flags(floatX="float32"):
        t = pt.lscalar("t")
        assert {schedule(t).dtype for schedule in EXAMPLES} == {"float64"}


EXAMPLES = [
    cosine(0.1, 100),
    exponential(0.1, 0.5, 10),
    inverse_sqrt(0.1, 10),
    linear_warmup(cosine(0.1, 100, end=0.01), 10),
    linear_warmup(0.1, 10),
    one_cycle(0.1, 100),
    piecewise([0.1, 0.01], [50]),
]


@pytest.mark.parametrize("schedule", EXAMPLES, ids=repr)
def test_a_schedule_is_read_back_from_its_repr_and_from_a_pickle(schedule):
    for other in (parse_schedule(repr(schedule)), pickle.loads(pickle.dumps(schedule))):
        assert other == schedule
        assert hash(other) == hash(schedule)


def test_equal_schedules_share_a_compiled_function(mode):
    w = pytensor.shared(1.0, name="w")
    trainer = dr.Trainer(w**2, mode=mode)
    for schedule in (cosine(0.1, 20), cosine(0.1, 20), cosine(0.1, 30)):
        trainer.step(learning_rate=schedule)
    assert len(trainer.steps._updates) == 2


def test_a_trainer_reports_the_rates(mode):
    w = pytensor.shared(1.0, name="w")
    trainer = dr.Trainer(w**2, mode=mode)
    trainer.minimize(learning_rate=cosine(0.1, 4), max_updates=5)
    expected = 0.05 * (1 + np.cos(np.pi * np.arange(5) / 4))
    found = [record.learning_rate for record in trainer.history]
    np.testing.assert_allclose(found, expected, atol=1e-18)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: cosine(-0.1, 10), ValueError, r"start is -0\.1: it lies in \[0, inf\)"),
        (lambda: cosine(np.nan, 10), ValueError, r"start is nan: it lies in \[0, inf\)"),
        (lambda: cosine("0.1", 10), TypeError, "start is '0.1': it takes a number"),
        (lambda: cosine(0.1, 0), ValueError, "updates is 0: it is at least 1"),
        (lambda: cosine(0.1, 1.5), TypeError, "updates is 1.5: it takes an integer"),
        (lambda: exponential(0.1, 0, 10), ValueError, r"factor is 0: it lies in \(0, inf\)"),
        (lambda: one_cycle(0.1, 3), ValueError, "warmup is 0.3 of 3 updates: a cycle goes up"),
        (lambda: one_cycle(0.1, 10, warmup=1), ValueError, r"warmup is 1: it lies in \[0, 1\)"),
        (lambda: one_cycle(0.1, 10, start_divisor=0), ValueError, "start_divisor is 0: it lies"),
        (
            lambda: piecewise([0.1], [10]),
            ValueError,
            r"boundaries is \[10\] for 1 values: they ascend",
        ),
        (lambda: piecewise([1, 2, 3], [9, 5]), ValueError, r"boundaries is \[9, 5\] for 3"),
        (lambda: piecewise(0.1, [10]), TypeError, "values is 0.1: it takes a list"),
        (lambda: piecewise([1, "2"], [10]), TypeError, r"values\[1\] is '2': it takes a number"),
        (lambda: linear_warmup("cosine", 10), TypeError, "then is 'cosine': it takes a number"),
    ],
)
def test_what_makes_no_sense_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("cosin(0.1, 10)", TypeError, "Did you mean 'cosine'"),
        ("cosine(0.1)", ValueError, r"cosine\(start, updates, end\).*missing.*'updates'"),
        ("cosine(0.1, 10, stop=1)", ValueError, "unexpected keyword argument 'stop'"),
        ("cosine(0.1, many)", ValueError, "is no schedule"),
        ("cosine", ValueError, "is no schedule"),
        ("0.1", ValueError, "is no schedule"),
        ("cosine(0.1, 10", ValueError, "is no schedule"),
        ("cosine(0.1, 5 * 2)", ValueError, "is no schedule"),
        ("cosine(0.1, True)", ValueError, "is no schedule"),
        ("__import__('os').system('true')", ValueError, "is no schedule"),
        ("cosine.__class__(0.1)", ValueError, "is no schedule"),
        ("cosine(*[0.1, 10])", ValueError, "is no schedule"),
        ("cosine(**{})", ValueError, "is no schedule"),
        ("(" * 5000, ValueError, "is no schedule"),
        ("-" * 5000 + "1", ValueError, "is no schedule"),
        ("cosine(-0.1, 10)", ValueError, "start is -0.1: it lies in"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_no_other_text_is_read(text, error, message):
    with pytest.raises(error, match=message):
        parse_schedule(text)


def test_all_are_known_by_name():
    assert set(schedules.SCHEDULES) == {repr(schedule).partition("(")[0] for schedule in EXAMPLES}
