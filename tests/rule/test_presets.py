"""Presets against trajectories of the libraries themselves, and against published formulas.

The golden files are described in tests/goldens/README.md. Where a library has no golden file its
update is written out below from its publication, with the two averages E[g] and E[g^2] that the
publications keep.
"""

import inspect
import json
from pathlib import Path

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from downhill_rms import Trainer, preset
from downhill_rms.rule.presets import PRESETS

# All three libraries computed in float64 from end to end: what differs is the order of rounding.
TOLERANCE = {"rtol": 1e-11, "atol": 1e-14}


def load(library):
    with np.load(Path(__file__).parents[1] / "goldens" / f"{library}.npz") as file:
        return dict(file)


GOLDENS = {library: load(library) for library in ("torch", "keras", "optax")}


def decode(library, key):
    return json.loads(str(GOLDENS[library][key]))


def golden_cases(key="cases"):
    return [
        pytest.param(library, i, arguments, id=f"{library}-{describe(arguments)}")
        for library, golden in GOLDENS.items()
        if key in golden
        for i, arguments in enumerate(decode(library, key))
    ]


def describe(arguments):
    return "-".join(f"{k}={v}" for k, v in arguments.items()) or "defaults"


def shared(values):
    names = ("weight", "bias")
    return [pytensor.shared(v, name=n) for v, n in zip(values, names, strict=True)]


def fixed_gradients(golden=GOLDENS["torch"]):
    return golden["gradient_weight"], golden["gradient_bias"]


def start(golden=GOLDENS["torch"]):
    return golden["start_weight"], golden["start_bias"]


def follow(values, gradients, hyperparameters, mode):
    """Parameters after each update by given gradients: those of the loss sum(g * p)."""
    params = shared(values)
    inputs = [p.type(f"gradient_{p.name}") for p in params]
    loss = sum((g * p).sum() for g, p in zip(inputs, params, strict=True))
    trainer = Trainer(loss, params=params, inputs=inputs, mode=mode)
    for batch in zip(*gradients, strict=True):
        trainer.step(batch, **hyperparameters)
        yield [p.get_value() for p in params]


# The libraries themselves


@pytest.mark.parametrize(("library", "case", "arguments"), golden_cases())
def test_every_update_is_the_librarys(library, case, arguments, mode):
    golden = GOLDENS[library]
    hyperparameters = preset(library, **arguments)
    ours = list(follow(start(golden), fixed_gradients(golden), hyperparameters, mode))
    assert len(ours) == golden["weight"].shape[1] == 50
    for (weight, bias), w, b in zip(
        ours, golden["weight"][case], golden["bias"][case], strict=True
    ):
        np.testing.assert_allclose(weight, w, **TOLERANCE)
        np.testing.assert_allclose(bias, b, **TOLERANCE)


@pytest.mark.parametrize(("library", "case", "arguments"), golden_cases("linear_cases"))
def test_every_update_of_a_linear_layer_is_the_librarys(library, case, arguments, mode):
    """nn.Linear(10, 1) with its own loss: here the gradients follow from the parameters."""
    golden = GOLDENS[library]
    x, y = pt.matrices("x", "y")
    weight, bias = shared([golden["linear_start_weight"], golden["linear_start_bias"]])
    loss = pt.sqr(x @ weight.T + bias - y).mean()
    trainer = Trainer(loss, params=[weight, bias], inputs=[x, y], mode=mode)
    for w, b in zip(golden["linear_weight"][case], golden["linear_bias"][case], strict=True):
        trainer.step([golden["linear_x"], golden["linear_y"]], **preset(library, **arguments))
        np.testing.assert_allclose(weight.get_value(), w, **TOLERANCE)
        np.testing.assert_allclose(bias.get_value(), b, **TOLERANCE)
    assert trainer.update_count == 50


@pytest.mark.parametrize("library", GOLDENS)
def test_arguments_and_defaults_are_the_librarys(library):
    theirs = decode(library, "defaults")
    ours = {n: p.default for n, p in inspect.signature(PRESETS[library]).parameters.items()}
    assert list(ours) == list(theirs)
    # optax has no default learning rate; Keras's name changes nothing, and its default changed.
    for name in {"optax": ["learning_rate"], "keras": ["name"]}.get(library, []):
        del ours[name], theirs[name]
    assert ours == theirs


# Published formulas


def averages(gradients, decay, mean_square=0.0):
    """Each gradient g, with E[g] and E[g^2] after it."""
    mean = 0.0
    for g in gradients:
        mean = decay * mean + (1 - decay) * g
        mean_square = decay * mean_square + (1 - decay) * g**2
        yield g, mean, mean_square


def graves(w, gradients, learning_rate=1e-4, decay=0.95, momentum=0.9, epsilon=1e-4):
    """arXiv:1308.0850, eq. 38-45."""
    delta = 0.0
    for g, mean, n in averages(gradients, decay):
        delta = momentum * delta - learning_rate * g / np.sqrt(n - mean**2 + epsilon)
        w = w + delta
        yield w


def downhill(
    p,
    gradients,
    learning_rate=1e-4,
    rms_halflife=14,
    rms_regularizer=1e-8,
    momentum=0,
    nesterov=False,
    max_gradient_elem=0,
    max_gradient_norm=0,
):
    """downhill 0.4: the elementwise clip takes precedence over the norm's."""
    assert not (momentum and nesterov)
    if max_gradient_elem:
        gradients = [np.clip(g, -max_gradient_elem, max_gradient_elem) for g in gradients]
    elif max_gradient_norm:
        norms = [max(np.sqrt((g * g).sum()), 1e-30) for g in gradients]
        limits = [min(1, max_gradient_norm / norm) for norm in norms]
        gradients = [g * limit for g, limit in zip(gradients, limits, strict=True)]
    velocity = 0.0
    for g, f, g2 in averages(gradients, np.exp(-np.log(2) / rms_halflife)):
        velocity = momentum * velocity - learning_rate * g / np.sqrt(g2 - f * f + rms_regularizer)
        p = p + velocity
        yield p


def hinton(w, gradients, learning_rate=1e-3, decay=0.9):
    """Lecture 6.5, whose root is bare, with 1e-8 against 0/0."""
    for g, _, mean_square in averages(gradients, decay):
        w = w - learning_rate * g / np.sqrt(mean_square + 1e-8)
        yield w


def puzzlelib(w, gradients, learnRate=1e-3, factor=0.9, epsilon=1e-5):
    """PuzzleLib's kernel, with the sign of descent."""
    for g, _, ms in averages(gradients, factor):
        w = w - learnRate * g / (np.sqrt(ms) + epsilon)
        yield w


def d2l(x, gradients, lr=0.01, gamma=0.9, eps=1e-6):
    """Dive into Deep Learning, eq. 12.8.1."""
    for g, _, s in averages(gradients, gamma):
        x = x - lr / np.sqrt(s + eps) * g
        yield x


def lucid(
    theta,
    gradients,
    lr=1e-2,
    alpha=0.99,
    eps=1e-8,
    weight_decay=0.0,
    momentum=0.0,
    centered=False,
):
    """Lucid 3: epsilon outside the root."""
    square_avg = grad_avg = buf = np.zeros_like(theta)
    for g in gradients:
        g = g + weight_decay * theta
        square_avg = alpha * square_avg + (1 - alpha) * g**2
        grad_avg = alpha * grad_avg + (1 - alpha) * g
        avg = square_avg - grad_avg**2 if centered else square_avg
        buf = momentum * buf + g / (np.sqrt(avg) + eps)
        theta = theta - lr * buf
        yield theta


def tf1(var, gradients, learning_rate=1e-3, decay=0.9, momentum=0.0, epsilon=1e-10, centered=False):
    """TensorFlow 1: the mean square starts at 1, the mean gradient at 0."""
    mom = 0.0
    for g, mg, ms in averages(gradients, decay, mean_square=1.0):
        variance = ms - mg**2 if centered else ms
        mom = momentum * mom + learning_rate * g / np.sqrt(variance + epsilon)
        var = var - mom
        yield var


def lasagne(param, gradients, learning_rate=1.0, rho=0.9, epsilon=1e-6):
    """lasagne.updates.rmsprop."""
    for g, _, accu in averages(gradients, rho):
        param = param - learning_rate * g / np.sqrt(accu + epsilon)
        yield param


PUBLISHED = {f.__name__: f for f in (graves, downhill, hinton, puzzlelib, d2l, lucid, tf1, lasagne)}
CASES = [
    *[(library, {}) for library in PUBLISHED],
    ("graves", {"learning_rate": 0.01, "decay": 0.8, "momentum": 0.5, "epsilon": 0.1}),
    ("downhill", {"learning_rate": 0.01, "rms_halflife": 3, "rms_regularizer": 1e-3}),
    ("downhill", {"learning_rate": 0.01, "momentum": 0.9, "max_gradient_norm": 1.5}),
    ("downhill", {"learning_rate": 0.01, "max_gradient_elem": 0.5}),
    ("downhill", {"max_gradient_elem": 0.5, "max_gradient_norm": 0.1}),
    ("downhill", {"nesterov": True}),
    ("hinton", {"learning_rate": 0.01, "decay": 0.5}),
    ("puzzlelib", {"learnRate": 0.01, "factor": 0.1, "epsilon": 0.1}),
    ("d2l", {"lr": 0.1, "gamma": 0.5, "eps": 0.1}),
    ("lucid", {"lr": 1e-3, "alpha": 0.9, "eps": 0.1}),
    ("lucid", {"weight_decay": 0.1, "momentum": 0.9}),
    ("lucid", {"centered": True}),
    ("lucid", {"weight_decay": 1e-4, "momentum": 0.9, "centered": True}),
    ("tf1", {"learning_rate": 0.01, "decay": 0.99, "momentum": 0.9, "epsilon": 0.1}),
    ("tf1", {"centered": True}),
    ("tf1", {"learning_rate": 0.1, "centered": True, "momentum": 0.5}),
    ("lasagne", {"learning_rate": 0.01, "rho": 0.5, "epsilon": 0.1}),
]


@pytest.mark.parametrize(("library", "arguments"), CASES, ids=str)
def test_every_update_is_the_published_one(library, arguments, mode):
    ours = follow(start(), fixed_gradients(), preset(library, **arguments), mode)
    theirs = [
        PUBLISHED[library](p, g, **arguments)
        for p, g in zip(start(), fixed_gradients(), strict=True)
    ]
    for got, *expected in zip(ours, *theirs, strict=True):
        np.testing.assert_allclose(got[0], expected[0], **TOLERANCE)
        np.testing.assert_allclose(got[1], expected[1], **TOLERANCE)


def test_hinton_is_the_bare_root_where_gradients_are_not_tiny(mode):
    """With gradients of at least 1 the mean square is at least 0.1, and 1e-8 is lost in it."""
    gradients = [np.sign(g) + g for g in fixed_gradients()]
    *_, (_, got) = follow(start(), gradients, preset("hinton"), mode)
    _, bias = start()
    for g, _, mean_square in averages(gradients[1], 0.9):
        bias = bias - 1e-3 * g / np.sqrt(mean_square)
    np.testing.assert_allclose(got, bias, rtol=1e-7)


def test_tf1_starts_at_one(mode):
    """The first step is lr * g / sqrt(0.9 + 0.1 * g^2): short, where others' is sqrt(10) * lr."""
    (weight, bias), (g, *_), (h, *_) = start(), *fixed_gradients()
    got, *_ = follow([weight, bias], fixed_gradients(), preset("tf1", epsilon=1e-30), mode)
    np.testing.assert_allclose(got[0], weight - 1e-3 * g / np.sqrt(0.9 + 0.1 * g**2), rtol=1e-13)
    np.testing.assert_allclose(got[1], bias - 1e-3 * h / np.sqrt(0.9 + 0.1 * h**2), rtol=1e-13)


# Defaults

PLAIN = {
    "rms_halflife": None,
    "momentum": 0,
    "nesterov": False,
    "centered": False,
    "regularize": "variance",
    "initial_accumulator": 0,
    "bias_correction": False,
    "weight_decay": 0,
    "decoupled_weight_decay": False,
    "max_gradient_elem": 0,
    "max_gradient_norm": 0,
    "max_global_norm": 0,
    "max_update": 0,
    "average": None,
    "average_halflife": 100,
    "average_start": 0,
}
TORCH = {"learning_rate": 0.01, "decay": 0.99, "rms_regularizer": 1e-8, "regularize": "rms"}
# What differs from uncentered RMSProp without any option.
DEFAULTS = {
    "graves": {
        "learning_rate": 1e-4,
        "decay": 0.95,
        "momentum": 0.9,
        "rms_regularizer": 1e-4,
        "centered": True,
    },
    "downhill": {
        "learning_rate": 1e-4,
        "decay": None,
        "rms_halflife": 14,
        "rms_regularizer": 1e-8,
        "centered": True,
    },
    "hinton": {"learning_rate": 1e-3, "decay": 0.9, "rms_regularizer": 1e-8},
    "puzzlelib": {
        "learning_rate": 1e-3,
        "decay": 0.9,
        "rms_regularizer": 1e-5,
        "regularize": "rms",
    },
    "d2l": {"learning_rate": 0.01, "decay": 0.9, "rms_regularizer": 1e-6},
    "lucid": TORCH,
    "torch": TORCH,
    "keras": {
        "learning_rate": 1e-3,
        "decay": 0.9,
        "rms_regularizer": 1e-7,
        "decoupled_weight_decay": True,
    },
    "tf1": {
        "learning_rate": 1e-3,
        "decay": 0.9,
        "rms_regularizer": 1e-10,
        "initial_accumulator": 1,
    },
    "optax": {"learning_rate": 1e-3, "decay": 0.9, "rms_regularizer": 1e-8},
    "lasagne": {"learning_rate": 1, "decay": 0.9, "rms_regularizer": 1e-6},
}


@pytest.mark.parametrize("library", PRESETS)
def test_defaults(library):
    assert dict(preset(library)) == PLAIN | DEFAULTS[library]


@pytest.mark.parametrize(
    ("library", "arguments"),
    [
        ("downhill", {"max_gradient_norm": 0}),
        ("puzzlelib", {"nodeinfo": None}),
        ("torch", {"foreach": True}),
        ("torch", {"foreach": False, "capturable": True}),
        ("keras", {"weight_decay": 0.0, "clipnorm": None}),
        ("keras", {"ema_momentum": 0.5, "ema_overwrite_frequency": 3}),  # of use_ema, which is off
        ("keras", {"name": "x"}),
        ("tf1", {"use_locking": True}),
        ("tf1", {"name": "x"}),
        ("optax", {"momentum": 0.0}),
    ],
    ids=str,
)
def test_arguments_that_change_no_result_are_accepted(library, arguments):
    assert preset(library, **arguments) == preset(library)


# Refusals


def schedule(count=0):
    return 0.1 / (1 + count)


@pytest.mark.parametrize(
    ("library", "arguments", "message"),
    [
        ("downhill", {"momentum": 0.9, "nesterov": True}, "nesterov is True.*square of momentum"),
        ("puzzlelib", {"nodeinfo": "node 0"}, "nodeinfo is 'node 0'.*one node"),
        ("lucid", {"lr": schedule}, "lr is <function.*learning_rate="),
        ("torch", {"lr": schedule}, "lr is <function.*learning_rate="),
        ("torch", {"maximize": True}, "maximize is True.*negative of the loss"),
        ("torch", {"differentiable": True}, "differentiable is True.*Leave it out"),
        ("keras", {"learning_rate": schedule}, "learning_rate is <function"),
        ("keras", {"use_ema": True}, "use_ema is True.*not averaged"),
        ("keras", {"loss_scale_factor": 8.0}, "loss_scale_factor is 8.0.*Scale the loss"),
        (
            "keras",
            {"gradient_accumulation_steps": 2},
            "gradient_accumulation_steps is 2.*batch_size",
        ),
        ("tf1", {"learning_rate": schedule}, "learning_rate is <function"),
        ("optax", {"learning_rate": schedule}, "learning_rate is <function"),
    ],
)
def test_what_cannot_be_expressed_is_refused(library, arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        preset(library, **arguments)
    assert f"preset({library!r}) cannot express" in str(error.value)


def test_none_is_no_value_where_a_library_has_none():
    with pytest.raises(TypeError, match="rho is None"):
        preset("keras", rho=None)
    assert preset("keras", clipnorm=None, weight_decay=None) == preset("keras")


def test_truth_is_not_guessed():
    with pytest.raises(TypeError, match="eps_in_sqrt is 'no'"):
        preset("optax", eps_in_sqrt="no")


@pytest.mark.parametrize(
    ("library", "arguments", "message"),
    [
        ("torch", {"eps": 0}, r"preset\('torch', eps=0\): rms_regularizer is 0: it lies in \(0"),
        ("torch", {"momentum": 1.0}, "momentum is 1.0: it lies in"),
        ("keras", {"rho": 1.0}, "rho=1.0.*decay is 1.0: it lies in"),
        ("keras", {"clipnorm": 1.0, "clipvalue": 1.0}, "one gradient clip"),
        ("keras", {"clipnorm": 1.0, "global_clipnorm": 1.0}, "one gradient clip"),
        ("optax", {"bias_correction": True, "initial_scale": 1.0}, "wipes out"),
    ],
)
def test_values_out_of_range_are_refused(library, arguments, message):
    with pytest.raises(ValueError, match=message):
        preset(library, **arguments)


@pytest.mark.parametrize(
    ("library", "unknown", "nearest"),
    [
        ("torch", "momentun", "momentum"),
        ("keras", "global_clip_norm", "global_clipnorm"),
        ("optax", "eps_in_root", "eps_in_sqrt"),
        ("downhill", "max_gradient_clip", "max_gradient_elem"),
    ],
)
def test_unknown_argument_is_refused_with_the_nearest(library, unknown, nearest):
    with pytest.raises(TypeError, match=f"'{unknown}'. Did you mean '{nearest}'"):
        preset(library, **{unknown: 0.5})


def test_argument_of_another_library_is_refused():
    with pytest.raises(TypeError, match=r"'learning_rate'\. Did you mean 'lr'"):
        preset("torch", learning_rate=0.1)


def test_unknown_preset_is_refused():
    with pytest.raises(ValueError, match="name is 'adam'.*'graves', 'downhill'.*'lasagne'"):
        preset("adam")
