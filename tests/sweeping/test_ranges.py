"""What a sweep tries: products, lists in step, draws from ranges; and what is refused."""

import numpy as np
import pytest

from downhill_rms.sweeping.ranges import as_seeds, combine, loguniform, uniform


def test_every_value_with_every_other_in_the_order_given():
    found = combine({"learning_rate": [1e-3, 1e-2], "momentum": (0.0, 0.9), "centered": True})
    assert found == [
        {"learning_rate": 1e-3, "momentum": 0.0},
        {"learning_rate": 1e-3, "momentum": 0.9},
        {"learning_rate": 1e-2, "momentum": 0.0},
        {"learning_rate": 1e-2, "momentum": 0.9},
    ]
    assert combine({"learning_rate": 0.1}) == [{}]


def test_lists_in_step():
    given = {"learning_rate": np.array([1e-3, 1e-2]), "rms_halflife": [5, 14]}
    assert combine(given, zipped=True) == [
        {"learning_rate": 1e-3, "rms_halflife": 5},
        {"learning_rate": 1e-2, "rms_halflife": 14},
    ]


def test_draws_are_uniform_or_their_logarithms_are():
    given = {"learning_rate": loguniform(1e-4, 1e-1), "momentum": uniform(0.5, 0.9)}
    drawn = combine(given, sample=2000, rng=np.random.default_rng(0))
    rates = np.log10([settings["learning_rate"] for settings in drawn])
    momenta = np.array([settings["momentum"] for settings in drawn])
    for values, low, high in ((rates, -4, -1), (momenta, 0.5, 0.9)):
        assert values.min() >= low
        assert values.max() <= high
        counts, _ = np.histogram(values, 4, (low, high))
        np.testing.assert_allclose(counts, 500, atol=100)  # five standard deviations
    again = combine(given, sample=2000, rng=np.random.default_rng(0))
    assert again == drawn


def test_lists_are_drawn_from_too():
    given = {"learning_rate": loguniform(0.1, 1), "nesterov": [True, False]}
    drawn = combine(given, sample=30, rng=np.random.default_rng(0))
    assert {settings["nesterov"] for settings in drawn} == {True, False}


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ({"learning_rate": []}, {}, "learning_rate is empty"),
        ({"learning_rate": [0.1, 0.1]}, {}, "twice"),
        ({"learning_rate": loguniform(0.1, 1)}, {}, "without sample="),
        ({"learning_rate": [0.1], "momentum": [0, 0.9]}, {"zipped": True}, "different lengths"),
        ({"learning_rate": [0.1]}, {"zipped": True, "sample": 3}, "both given"),
        ({"learning_rate": 0.1}, {"sample": 3}, "no range or list"),
    ],
)
def test_what_cannot_be_combined_is_refused(given, options, message):
    with pytest.raises(ValueError, match=message):
        combine(given, **options)


@pytest.mark.parametrize("ends", [(0, 1), (1, 1), (2, 1), (-1, 1)])
def test_a_logarithmic_range_has_positive_ends_in_order(ends):
    with pytest.raises(ValueError, match="0 < low < high"):
        loguniform(*ends)


def test_an_end_is_a_number():
    with pytest.raises(TypeError, match="uniform: high"):
        uniform(0, "1")


def test_seeds_are_a_count_or_a_list():
    assert as_seeds(3) == [0, 1, 2]
    assert as_seeds([4, 9]) == [4, 9]
    assert as_seeds(None) == []
    for wrong in ("3", [0.5], [-1], True):
        with pytest.raises((TypeError, ValueError)):
            as_seeds(wrong)
