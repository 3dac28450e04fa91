"""Ranges, exclusions and names, checked where hyperparameters are made."""

import inspect
import math
import pickle

import numpy as np
import pytensor
import pytest

from downhill_rms import Hyperparameters


def test_defaults_are_those_of_downhill():
    h = Hyperparameters()
    assert (h.learning_rate, h.rms_halflife, h.rms_regularizer) == (1e-4, 14, 1e-8)
    assert (h.momentum, h.nesterov, h.centered) == (0, False, True)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"learning_rate": -1}, r"learning_rate is -1: it lies in \[0, inf\)"),
        ({"learning_rate": 10**400}, "learning_rate is 1000.*: it lies in"),
        ({"regularize": []}, "regularize is"),
        ({"learning_rate": math.nan}, "learning_rate is .*: it lies in"),
        ({"learning_rate": math.inf}, "learning_rate is .*: it lies in"),
        ({"rms_halflife": 0}, r"rms_halflife is 0: it lies in \(0"),
        ({"decay": 1.0}, r"decay is 1.0: it lies in \[0, 1\)"),
        ({"decay": -0.1}, "decay is .*: it lies in"),
        ({"rms_regularizer": 0}, "rms_regularizer is .*: it lies in"),
        ({"momentum": 1}, "momentum is .*: it lies in"),
        ({"weight_decay": -1}, "weight_decay is .*: it lies in"),
        ({"initial_accumulator": -1}, "initial_accumulator is .*: it lies in"),
        ({"max_gradient_norm": -1}, "max_gradient_norm is .*: it lies in"),
        ({"max_update": -1}, "max_update is .*: it lies in"),
        ({"regularize": "std"}, "regularize is 'std': it takes 'variance' or 'rms'"),
        ({"decay": 0.9, "rms_halflife": 14}, "rms_halflife=14 and decay=0.9 are both given"),
        ({"max_gradient_elem": 1, "max_global_norm": 2}, "one gradient clip"),
        ({"bias_correction": True, "initial_accumulator": 1}, "wipes out"),
    ],
)
def test_values_out_of_range_are_refused(keywords, message):
    with pytest.raises(ValueError, match=message):
        Hyperparameters(**keywords)


@pytest.mark.parametrize(
    "keywords",
    [
        {"learning_rate": "0.1"},
        {"learning_rate": None},
        {"momentum": True},
        {"momentum": 1j},
        {"nesterov": 1},
        {"centered": "yes"},
        {"momentum": b"0.5"},
        {"momentum": np.complex64(0.5)},
        {"momentum": np.array([0.5])},
    ],
)
def test_values_of_the_wrong_type_are_refused(keywords):
    with pytest.raises(TypeError, match=next(iter(keywords))):
        Hyperparameters(**keywords)


def test_unknown_name_is_refused_with_the_nearest():
    """downhill swallowed a typo and trained with the default."""
    with pytest.raises(TypeError, match=r"'learning_rat'\. Did you mean 'learning_rate'"):
        Hyperparameters(learning_rat=0.1)


def test_shared_learning_rate_must_be_a_scalar():
    with pytest.raises(
        ValueError, match="learning_rate is 'rates' .*: a shared one is a real scalar"
    ):
        Hyperparameters(learning_rate=pytensor.shared(np.ones(2), name="rates"))


def test_halflife_and_decay_say_the_same():
    by_halflife = Hyperparameters(rms_halflife=14).numbers["ewma_weight"]
    by_decay = Hyperparameters(decay=0.5 ** (1 / 14)).numbers["ewma_weight"]
    assert by_halflife == pytest.approx(1 - 0.5 ** (1 / 14), rel=1e-12)
    assert by_decay == pytest.approx(by_halflife, rel=1e-12)
    assert Hyperparameters(decay=0).numbers["ewma_weight"] == 1


def test_replace_takes_the_new_one_of_decay_and_halflife():
    h = Hyperparameters(rms_halflife=5).replace(decay=0.9)
    assert (h.decay, h.rms_halflife) == (0.9, None)
    h = h.replace(rms_halflife=7, momentum=0.5)
    assert (h.decay, h.rms_halflife, h.momentum) == (None, 7, 0.5)


def test_they_unpack_and_pickle():
    h = Hyperparameters(momentum=0.9, decay=0.8)
    assert Hyperparameters(**h) == h
    assert pickle.loads(pickle.dumps(h)) == h


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 0.5},
        {"rms_halflife": 3},
        {"decay": 0.5},
        {"rms_regularizer": 1e-3},
        {"momentum": 0.1},
        {"weight_decay": 0.2},
        {"max_gradient_norm": 9},
        {"initial_accumulator": 1},
    ],
)
def test_numbers_do_not_shape_the_graph(change):
    h = Hyperparameters(momentum=0.9, weight_decay=0.1, max_gradient_norm=1)
    assert h.replace(**change).structure == h.structure


@pytest.mark.parametrize(
    "change",
    [
        {"centered": False},
        {"nesterov": True},
        {"momentum": 0},
        {"regularize": "rms"},
        {"bias_correction": True},
        {"weight_decay": 0},
        {"decoupled_weight_decay": True},
        {"max_update": 1},
        {"max_gradient_norm": 0, "max_gradient_elem": 1},
        {"learning_rate": lambda t: 1 / t},
    ],
)
def test_choices_do(change):
    h = Hyperparameters(momentum=0.9, weight_decay=0.1, max_gradient_norm=1)
    assert h.replace(**change).structure != h.structure


def test_numpy_numbers_are_numbers():
    h = Hyperparameters(learning_rate=np.float32(0.5), momentum=np.array(0.25))
    assert (h.learning_rate, h.momentum) == (0.5, 0.25)
    assert type(h.learning_rate) is float


def test_the_signature_names_them():
    """__new__ would show (**keywords) in help() and in editors."""
    assert list(inspect.signature(Hyperparameters).parameters) == Hyperparameters.names()
