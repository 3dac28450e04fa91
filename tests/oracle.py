"""RMSProp in NumPy float64: the formulas of docs/mathematics, written independently.

Names are those of the formulas: ``delta``, ``mean_t``, ``variance_t``, ``velocity_t``, ``u``.
"""

import numpy as np


class Oracle:
    """Update a list of arrays by the gradients that are given to it.

    ``learning_rate`` may be a function of the update count t, 1 at the first update.
    """

    def __init__(
        self,
        params,
        *,
        learning_rate=1e-4,
        rms_halflife=14.0,
        decay=None,
        rms_regularizer=1e-8,
        momentum=0.0,
        nesterov=False,
        centered=True,
        regularize="variance",
        initial_accumulator=0.0,
        bias_correction=False,
        weight_decay=0.0,
        decoupled_weight_decay=False,
        max_gradient_elem=0.0,
        max_gradient_norm=0.0,
        max_global_norm=0.0,
        max_update=0.0,
    ):
        self.params = [np.array(p, dtype=np.float64) for p in params]
        self.learning_rate = learning_rate
        self.gamma = np.exp(-np.log(2) / rms_halflife) if decay is None else decay
        self.epsilon = rms_regularizer
        self.mu = momentum
        self.nesterov = nesterov
        self.centered = centered
        self.regularize = regularize
        self.bias_correction = bias_correction
        self.weight_decay = weight_decay
        self.decoupled = decoupled_weight_decay
        self.max_elem = max_gradient_elem
        self.max_norm = max_gradient_norm
        self.max_global_norm = max_global_norm
        self.max_update = max_update
        self.t = 0
        self.mean = [np.zeros_like(p) for p in self.params]
        self.variance = [np.full_like(p, initial_accumulator) for p in self.params]
        self.velocity = [np.zeros_like(p) for p in self.params]

    def update(self, gradients):
        self.t += 1
        gradients = self._clip([np.asarray(g, dtype=np.float64) for g in gradients])
        if self.weight_decay and not self.decoupled:
            gradients = [
                g + self.weight_decay * p for g, p in zip(gradients, self.params, strict=True)
            ]
        lr = self.learning_rate(self.t) if callable(self.learning_rate) else self.learning_rate
        w = 1 - self.gamma
        if self.bias_correction:
            w = (1 - self.gamma) / (1 - self.gamma**self.t)
        for i, g in enumerate(gradients):
            self._update_parameter(i, g, lr, w)
        return self.params

    def _clip(self, gradients):
        if self.max_elem:
            return [np.clip(g, -self.max_elem, self.max_elem) for g in gradients]
        norms = [np.sqrt((g**2).sum()) for g in gradients]
        if self.max_norm:
            return [
                g * self.max_norm / n if n > self.max_norm else g
                for g, n in zip(gradients, norms, strict=True)
            ]
        common = np.sqrt(sum(n**2 for n in norms))
        if self.max_global_norm and common > self.max_global_norm:
            return [g * self.max_global_norm / common for g in gradients]
        return gradients

    def _update_parameter(self, i, g, lr, w):
        variance_tm1 = self.variance[i]
        if self.centered:
            mean_tm1 = self.mean[i]
            delta = g - mean_tm1
            mean_t = mean_tm1 + w * delta
            variance_t = (1 - w) * (variance_tm1 + w * delta**2)
            self.mean[i] = mean_t
        else:
            variance_t = (1 - w) * variance_tm1 + w * g**2
        self.variance[i] = variance_t

        if self.regularize == "variance":
            u = lr * g / np.sqrt(variance_t + self.epsilon)
        else:
            u = lr * g / (np.sqrt(variance_t) + self.epsilon)

        if self.max_update:
            u = np.clip(u, -self.max_update, self.max_update)

        param = self.params[i]
        if self.weight_decay and self.decoupled:
            param = param * (1 - lr * self.weight_decay)
        if self.mu:
            velocity_t = self.mu * self.velocity[i] - u
            self.velocity[i] = velocity_t
            param = param + (self.mu * velocity_t - u if self.nesterov else velocity_t)
        else:
            param = param - u
        self.params[i] = param
