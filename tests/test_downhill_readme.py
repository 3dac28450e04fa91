"""downhill's README, its programs word for word; only the imports are changed.

Source: README.rst of downhill 0.4.0 by Leif Johnson (MIT). ``downhill`` becomes
``downhill_rms``, ``theano`` becomes ``pytensor``, ``TT`` becomes ``pytensor.tensor``.
"""

import numpy as np
import pytest

PROGRAM = """
import downhill_rms as downhill
import numpy as np
import pytensor as theano
import pytensor.tensor as TT

FLOAT = 'df'[theano.config.floatX == 'float32']

def rand(a, b):
    return np.random.randn(a, b).astype(FLOAT)

A, B, K = 20, 5, 3

# Set up a matrix factorization problem to optimize.
u = theano.shared(rand(A, K), name='u')
v = theano.shared(rand(K, B), name='v')
z = TT.matrix()
err = TT.sqr(z - TT.dot(u, v))
loss = err.mean() + abs(u).mean() + (v * v).mean()

# Minimize the regularized loss with respect to a data matrix.
y = np.dot(rand(A, K), rand(K, B)) + rand(A, B)

# Monitor during optimization.
monitors = (('err', err.mean()),
            ('|u|<0.1', (abs(u) < 0.1).mean()),
            ('|v|<0.1', (abs(v) < 0.1).mean()))

downhill.minimize(
    loss=loss,
    train=[y],
    patience=0,
    batch_size=A,                 # Process y as a single batch.
    max_gradient_norm=1,          # Prevent gradient explosion!
    learning_rate=0.1,
    monitors=monitors,
    monitor_gradients=True)

# Print out the optimized coefficients u and basis v.
print('u =', u.get_value())
print('v =', v.get_value())
"""

LOOP = """
opt = downhill.build(algo='rmsprop',
                     loss=loss,
                     monitors=monitors,
                     monitor_gradients=True)

for metrics, _ in opt.iterate(train=[[y]],
                              patience=0,
                              batch_size=A,
                              max_gradient_norm=1,
                              learning_rate=0.1):
    print(metrics)
"""

UPDATES = """
updates = downhill.build('rmsprop', loss).get_updates(
    batch_size=A, max_gradient_norm=1, learning_rate=0.1)
func = theano.function([z], loss, updates=list(updates))
for _ in range(100):
    print(func(y))  # Evaluate func and apply variable updates.
"""


@pytest.fixture
def names():
    """The names that the first program leaves behind, and its loss before and after."""
    np.random.seed(1)
    start, _, minimise = PROGRAM.partition("downhill.minimize(")
    names = {}
    exec(start, names)
    names["before"] = names["downhill"].Trainer(names["loss"]).evaluate([names["y"]])["loss"]
    exec("downhill.minimize(" + minimise, names)
    return names


def test_minimize(names, capsys):
    after = names["downhill"].Trainer(names["loss"]).evaluate([names["y"]])["loss"]
    assert after < names["before"] / 3


def test_iterate(names, capsys):
    exec(LOOP, names)
    monitors = ["loss", "err", "|u|<0.1", "|v|<0.1", "grad(u)", "grad(v)"]
    assert list(names["metrics"]) == monitors
    assert "'loss':" in capsys.readouterr().out


def test_updates(names, capsys):
    capsys.readouterr()
    exec(UPDATES, names)
    losses = [float(line) for line in capsys.readouterr().out.split()]
    assert len(losses) == 100
    assert np.isfinite(losses).all()
