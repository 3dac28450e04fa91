"""
Porting a downhill program
==========================

The program of ``downhill``'s README, with Theano's import changed to PyTensor's. What else has
changed is on the page for those who come from there, :doc:`/from_downhill`.
"""

import matplotlib.pyplot as plt
import numpy as np
import pytensor
import pytensor.tensor as TT

import downhill_rms as downhill

A, B, K = 20, 5, 3


def rand(a, b):
    """A matrix of normal numbers."""
    return np.random.randn(a, b)


np.random.seed(0)
u = pytensor.shared(rand(A, K), name="u")
v = pytensor.shared(rand(K, B), name="v")
z = TT.matrix("z")
err = TT.sqr(z - TT.dot(u, v))
loss = err.mean() + abs(u).mean() + (v * v).mean()
y = np.dot(rand(A, K), rand(K, B)) + rand(A, B)

# %%
# One call, as it was.
downhill.minimize(
    loss=loss,
    train=[y],
    patience=0,
    batch_size=A,
    max_gradient_norm=1,
    learning_rate=0.1,
    monitors=(("err", err.mean()), ("|u|<0.1", (abs(u) < 0.1).mean())),
    monitor_gradients=True,
)
print("loss", round(float(loss.eval({z: y})), 3))

# %%
# The loop, as it was; ``opt.history`` has its figures too.
losses = []
opt = downhill.build(algo="rmsprop", loss=loss)
for metrics, _ in opt.iterate([[y]], learning_rate=0.01, batch_size=A, max_epochs=60):
    losses.append(metrics["loss"])
print("loss", round(losses[-1], 3))

fig, ax = plt.subplots()
ax.plot(losses)
ax.set_xlabel("epoch")
ax.set_ylabel("loss")
plt.show()

# %%
# And the updates alone, for a function of one's own.
updates = downhill.build("rmsprop", loss).get_updates(learning_rate=0.001, max_gradient_norm=1)
func = pytensor.function([z], loss, updates=list(updates))
print("loss", round(float(func(y)), 3))
