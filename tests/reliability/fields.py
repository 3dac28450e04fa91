"""Spoil each field of a valid state in each way, and count what is loaded all the same.

A state with one bad field must be refused by a ValueError, with nothing changed.

    python -m tests.reliability.fields
"""

import argparse
import json
import sys
import warnings
from dataclasses import dataclass, field

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from downhill_rms import Dataset, Trainer
from tests.training.test_resume import StopAfter

DEEP = "[" * 100_000
# Learning rates that a program holds itself are None, and a decay is given in one of two ways.
MISSING = object()


class Odd:
    """Nothing that a state holds; it does not even become an array."""

    def __array__(self, *args, **kwargs):
        raise RuntimeError("no array")


ANYTHING = [MISSING, Odd(), "x", DEEP, b"x", -1, 1.5, 2**80, float("nan"), True, {}, [[1], [2, 3]]]
ANYTHING += [None, 1j, np.zeros(7), np.zeros((), dtype=object), np.array("x"), np.float64("nan")]
JSONS = ["", "{", "[]", "{}", "null", "1", '"x"', '{"x": 1}', '[{"x": 1}]', "[[]]", "[1]"]


@dataclass
class Result:
    """What became of states with one bad field."""

    refused: int = 0
    loaded: list[str] = field(default_factory=list)
    other_exceptions: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)


def make(mode, seed=1, bit_generator=np.random.PCG64):
    """A trainer whose state has every kind of field, a run in the middle of an epoch included."""
    x, y = pt.matrix("x"), pt.vector("y")
    w = pytensor.shared(np.zeros(3), name="w")
    ema = pytensor.shared(np.zeros(3), name="ema")
    generator = pytensor.shared(np.random.Generator(bit_generator(seed)), name="dropout")
    _, mask = generator.bernoulli(0.8, size=x.shape)
    sums = pytensor.shared(np.zeros(3), name="sums")
    loss = pt.sqr((x * mask) @ w - y).mean()
    further = {"updates": [(ema, 0.9 * ema + 0.1 * w)], "carried": {sums: sums + x.sum(axis=0)}}
    monitors = {"|w|": abs(w).sum(), "sum": sums.sum()}
    return Trainer(loss, inputs=[x, y], monitors=monitors, mode=mode, **further)


def data():
    """Some samples in an order of their own."""
    rng = np.random.default_rng(0)
    return Dataset([rng.normal(size=(26, 3)), rng.normal(size=26)], batch_size=8, rng=4)


def train(trainer):
    """Leave a run in the middle of its second epoch."""
    dataset = data()
    with pytest.MonkeyPatch.context() as patch:
        StopAfter(dataset, patch, 6)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # shuffled, although something is carried
            trainer.minimize(dataset, momentum=0.9, validate_every=1, restore_best=False)


def bad_values(name, value):
    """What a field may not hold in place of its value."""
    values = [v for v in ANYTHING if not same(v, value) and not is_legal(name, v)]
    if isinstance(value, np.ndarray):
        values += [value[..., None], value[:-1], value.astype("float16"), value.astype(str)]
        values += [value.astype(value.dtype.newbyteorder())]
        if name == "train/permutation":
            values += [np.zeros_like(value), value + 1, value - 1]
    elif isinstance(value, str) and value[:1] in "[{":
        values += [text for text in JSONS if not same(text, value) and not is_legal(name, text)]
        parsed = json.loads(value)
        if isinstance(parsed, dict):
            texts = [json.dumps(parsed | {key: DEEP[:100]}) for key in parsed]
            texts += [json.dumps({k: parsed[k] for k in parsed if k != key}) for key in parsed]
            values += [text for text in texts if not is_legal(name, text)]
        elif parsed:
            values += [json.dumps([{**parsed[0], key: {}}, *parsed[1:]]) for key in COUNTED]
    elif isinstance(value, int) and not isinstance(value, bool):
        values += [float(value), str(value), np.array([value])]
    return values


FLAGS = {f"hyperparameter/{n}" for n in ("nesterov", "centered", "bias_correction")}
FLAGS |= {"hyperparameter/decoupled_weight_decay", "run/finished", "run/higher_is_better"}
EMPTY = {"run/latest": "{}", "history": "[]"}
COUNTED = ("epoch", "updates", "seconds", "validated", "learning_rate")


def same(bad, value):
    """Whether two values are one to whoever reads a state."""
    return type(bad) is type(value) and not isinstance(bad, np.ndarray) and bad == value


def is_legal(name, bad):
    """Whether another value of this field describes another state that is as valid."""
    if isinstance(bad, np.ndarray) or bad is MISSING:
        return False
    if isinstance(bad, bool):
        return name in FLAGS
    if name.startswith(("best/loss", "run/best_loss", "epoch/samples")):
        finite = isinstance(bad, float | np.floating) and bad == bad
        undecided = name.endswith("best_loss") or name == "best/loss"
        undecided = undecided and isinstance(bad, float) and bad != bad
        return finite or undecided or (type(bad) is int)
    if name == "fingerprint":  # built by another release of PyTensor
        return isinstance(bad, str) and '"pytensor": "[' in bad
    if name in EMPTY:
        return bad == EMPTY[name]
    if name == "train/generator":  # of a package that may be there
        return isinstance(bad, str) and '"bit_generator": "[' in bad
    if name == "hyperparameter/learning_rate":
        return bad is None or bad == 1.5 or (type(bad) is int and bad > 0)
    if name in ("hyperparameter/rms_halflife", "hyperparameter/average_halflife"):
        return type(bad) in (int, float) and bad > 0
    if name.startswith("hyperparameter/"):
        numbers = type(bad) in (int, float) and bad >= 0
        limited = name in ("hyperparameter/momentum", "hyperparameter/decay")
        clip = name.startswith("hyperparameter/max_") or "weight_decay" in name
        return (
            numbers
            and not limited
            and (clip or "regularizer" in name or "_start" in name or "initial" in name)
        )
    return False


def everything(trainer):
    """All that loading a state can change, to the byte."""
    state = trainer.state_dict()
    return {n: v.tobytes() if isinstance(v, np.ndarray) else repr(v) for n, v in state.items()}


def run(mode="FAST_COMPILE"):
    """Spoil every field in every way."""
    trainer = make(mode)
    train(trainer)
    state = trainer.state_dict()
    assert {"run/batches", "epoch/sums", "train/permutation", "best/assigned/ema"} <= set(state)
    result, target = Result(), make(mode, seed=2)
    before = everything(target)
    for name, value in state.items():
        for bad in bad_values(name, value):
            spoilt = state | {name: bad}
            if bad is MISSING:
                del spoilt[name]
            judge(target, before, spoilt, f"{name} = {bad!r:.60}", result)
            if everything(target) != before:
                target = make(mode, seed=2)
    other = make(mode, bit_generator=np.random.MT19937)
    judge(other, everything(other), state, "another generator", result)
    return result


def judge(trainer, before, state, what, result):
    """Try to load a state, and count what happens."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.load_state_dict(state)
    except ValueError as error:
        if "does not fit this trainer" in str(error):
            result.refused += 1
        else:
            result.other_exceptions.append(f"{what}: {error!r:.200}")
    except Exception as error:
        result.other_exceptions.append(f"{what}: {error!r:.200}")
    else:
        result.loaded.append(what)
        return
    if everything(trainer) != before:
        result.changed.append(what)


def main():
    """Print the counts; exit with 1 if a bad field was loaded."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    result = run()
    faults = [*result.loaded, *result.other_exceptions, *result.changed]
    print(
        f"states with one bad field: {result.refused} refused, {len(result.loaded)} loaded, "
        f"{len(result.other_exceptions)} other exceptions, {len(result.changed)} changed something"
    )
    print(*faults[:20], sep="\n")
    sys.exit(len(faults) > 0)


if __name__ == "__main__":
    main()
