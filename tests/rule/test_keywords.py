"""Unknown keywords: what other libraries call a thing, then the nearest spelling."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

import downhill_rms as dr


def make(mode):
    x, w = pt.vector("x"), pytensor.shared(0.0, name="w")
    return dr.Trainer(pt.sqr(x - w).mean(), inputs=[x], mode=mode)


@pytest.mark.parametrize(
    ("keyword", "meant"),
    [
        ("random_state", "seed"),
        ("lr", "learning_rate"),
        ("step_rate", "learning_rate"),
        ("alpha", "decay"),
        ("beta", "decay"),
        ("rho", "decay"),
        ("gamma", "decay"),
        ("eps", "rms_regularizer"),
        ("epsilon", "rms_regularizer"),
        ("verbose", "progress"),
        ("epochs", "max_epochs"),
        ("n_epochs", "max_epochs"),
        ("num_epochs", "max_epochs"),
        ("callbacks", "observers"),
        ("validation_data", "valid"),
        ("tol", "min_improvement"),
        ("clipvalue", "max_gradient_elem"),
        ("l2", "weight_decay"),
    ],
)
def test_names_of_other_libraries_are_known(keyword, meant, mode):
    with pytest.raises(TypeError, match=f"{keyword!r}. Did you mean {meant!r}?"):
        make(mode).iterate([np.ones(8)], **{keyword: 1})


@pytest.mark.parametrize(
    ("keyword", "where"),
    [
        ("shuffle", "Dataset"),
        ("rng", "Dataset"),
        ("validation_split", "valid="),
        ("monitor_gradients", "Trainer"),
        ("params", "Trainer"),
        ("mode", "Trainer"),
        ("every_epochs", "Checkpoint"),
    ],
)
def test_what_is_said_elsewhere_is_told_where(keyword, where, mode):
    with pytest.raises(TypeError, match=f"'{keyword}'. .*{where}"):
        make(mode).iterate([np.ones(8)], **{keyword: 1})


def test_every_keyword_that_is_said_elsewhere_is_an_argument_there():
    from inspect import signature

    from downhill_rms.rule.keywords import ELSEWHERE

    for owner in (dr.Trainer, dr.Dataset, dr.Checkpoint):
        known = set(signature(owner).parameters)
        told = {k for k, hint in ELSEWHERE.items() if f"{owner.__name__}(..., {k}=" in hint}
        assert told, owner
        assert told <= known


def test_a_known_name_is_never_explained_away():
    """An alias in one place is the name itself in another."""
    assert dr.preset("torch", alpha=0.5).decay == 0.5
    with pytest.raises(TypeError, match="'learning_rate'. Did you mean 'lr'?"):
        dr.preset("torch", learning_rate=0.1)
    with pytest.raises(TypeError, match="'rho'. Did you mean 'gamma'?"):
        dr.preset("d2l", rho=0.9)
    with pytest.raises(TypeError, match="'epochs'. Known: learning_rate"):
        dr.Hyperparameters(epochs=3)


def test_names_of_parameters_have_no_synonyms(mode):
    x, alpha = pt.vector("x"), pytensor.shared(0.0, name="alpha")
    trainer = dr.Trainer(pt.sqr(x - alpha).mean(), inputs=[x], mode=mode)
    for name in ("beta", "axis", 3):  # alpha to others, an argument of Dataset, no name at all
        with pytest.raises(TypeError, match=f"Unknown parameter {name!r}. Known: alpha."):
            trainer.set_params({name: 1.0})
