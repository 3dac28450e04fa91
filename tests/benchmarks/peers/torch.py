"""PyTorch on the CPU: ``torch.optim.RMSprop``, centered, with foreach as it chooses itself."""

from __future__ import annotations

import torch
from torch import nn

from tests.benchmarks.rungs import DECAY, EPSILON, LEARNING_RATE


def version():
    """Who this is."""
    return f"torch {torch.__version__}"


def optimiser_of(parameters, learning_rate=LEARNING_RATE):
    """The same RMSProp as everyone's."""
    return torch.optim.RMSprop(
        parameters, lr=learning_rate, alpha=DECAY, eps=EPSILON, centered=True
    )


def network(rung):
    """A network, an optimiser and a loop over slices of tensors."""
    layers = []
    for rows, columns in zip(rung.sizes, rung.sizes[1:], strict=False):
        activation = nn.Tanh() if rung.activation == "tanh" else nn.ReLU()
        layers += [nn.Linear(rows, columns), activation]
    model = nn.Sequential(*layers[:-1])
    x, y = map(torch.from_numpy, rung.data())
    y = y.long() if rung.sizes[-1] > 1 else y
    criterion = nn.CrossEntropyLoss() if rung.sizes[-1] > 1 else nn.MSELoss()

    def start():
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), rung.parameters(), strict=True):
                parameter.copy_(torch.from_numpy(value.T.copy()))

    def train_with(optimiser, updates):
        for index in range(updates):
            start = index * rung.batch % rung.samples
            optimiser.zero_grad()
            loss = criterion(model(x[start : start + rung.batch]), y[start : start + rung.batch])
            loss.backward()
            optimiser.step()

    start()
    only = optimiser_of(model.parameters())

    def train(updates):
        for rate in rung.rates:
            if len(rung.rates) > 1:
                start()
            several = len(rung.rates) > 1
            train_with(optimiser_of(model.parameters(), rate) if several else only, updates)
        with torch.no_grad():
            return float(criterion(model(x[: rung.batch]), y[: rung.batch]))

    return train


def update_alone(rung):
    """Steps of the optimiser with given gradients."""
    parameters = [torch.zeros(rung.size, requires_grad=True) for _ in range(rung.arrays)]
    optimiser = optimiser_of(parameters)
    gradients = [list(torch.from_numpy(values)) for values in rung.gradients]

    def train(updates):
        for index in range(updates):
            for parameter, gradient in zip(parameters, gradients[index % 8], strict=True):
                parameter.grad = gradient
            optimiser.step()
        return float(sum(parameter.detach().mean() for parameter in parameters) / rung.arrays)

    return train


def language_model(rung):
    """``nn.LSTM``, ``nn.GRU`` or ``nn.RNN`` with one of its two biases held at 0."""
    values = {name: torch.from_numpy(v.T.copy()) for name, v in rung.parameters().items()}
    cell = getattr(nn, rung.cell)(rung.characters, rung.units)
    output = nn.Linear(rung.units, rung.characters)
    with torch.no_grad():
        cell.weight_ih_l0.copy_(values["input"])
        cell.weight_hh_l0.copy_(values["recurrent"])
        cell.bias_ih_l0.copy_(values["bias"])
        cell.bias_hh_l0.zero_().requires_grad_(False)
        output.weight.copy_(values["output"])
        output.bias.copy_(values["output_bias"])
    parameters = [p for p in (*cell.parameters(), *output.parameters()) if p.requires_grad]
    optimiser = optimiser_of(parameters)
    texts = torch.from_numpy(rung.texts()).long()

    def loss_of(text):
        hidden, _ = cell(nn.functional.one_hot(text[:-1], rung.characters).float())
        scores = output(hidden).reshape(-1, rung.characters)
        return nn.functional.cross_entropy(scores, text[1:].reshape(-1))

    def train(updates):
        for index in range(updates):
            optimiser.zero_grad()
            loss_of(texts[index % len(texts)]).backward()
            optimiser.step()
        with torch.no_grad():
            return float(loss_of(texts[0]))

    return train


def encoder(rung):
    """The layers as functions of tensors, on one minibatch."""
    parts, width = rung.heads, rung.units // rung.heads
    letters = torch.from_numpy(rung.data()).long()
    rows, length = letters.shape

    def heads(h):
        return h.reshape(rows, length, parts, width).transpose(1, 2)

    def loss_of(params):
        given = iter(params)

        def normalised(h):
            return nn.functional.layer_norm(h, (rung.units,), next(given), next(given))

        h = next(given)[letters] + next(given)
        for _ in range(rung.layers):
            a = normalised(h)
            query, key, value = (heads(a @ next(given)) for _ in range(3))
            mixed = nn.functional.scaled_dot_product_attention(query, key, value)
            h = h + mixed.transpose(1, 2).reshape(h.shape) @ next(given)
            a = normalised(h)
            hidden = torch.relu(a @ next(given) + next(given))
            h = h + hidden @ next(given) + next(given)
        scores = normalised(h) @ next(given)
        return nn.functional.cross_entropy(scores.flatten(0, 1), letters.flatten())

    return steps(loss_of, [torch.from_numpy(array) for array in rung.parameters()])


def filters(weights):
    """The filters that are columns of a matrix, channels before places."""
    return weights.reshape(3, 3, -1, weights.shape[1]).permute(3, 2, 0, 1)


def convolved(x, w):
    """The convolution of images whose places are in a row."""
    images = x.reshape(len(x), 8, 8, -1).permute(0, 3, 1, 2)
    return nn.functional.conv2d(images, filters(w), padding=1)


OPERATIONS = {
    "batched product": torch.matmul,
    "batch by matrix": torch.matmul,
    "softmax": lambda x: torch.softmax(x, -1),
    "log softmax": lambda x: torch.log_softmax(x, -1),
    "layer norm": lambda x, scale, shift: nn.functional.layer_norm(x, scale.shape, scale, shift),
    "embedding": lambda table, rows: nn.functional.embedding(rows, table),
    "convolution by indices": convolved,
    "convolve1d": lambda x, w: nn.functional.conv1d(x[:, None], w.flip(0)[None, None], padding=4),
    "convolve2d": lambda x, w: nn.functional.conv2d(
        x[None, None], w.flip(0, 1)[None, None], padding=1
    ),
}


def operation(rung):
    """An operation and its gradients, one after the other."""
    arrays = [torch.from_numpy(array).requires_grad_() for array in rung.arrays()]
    integers = list(map(torch.from_numpy, rung.integers()))

    def train(updates):
        for _ in range(updates):
            total = OPERATIONS[rung.name](*arrays, *integers).square().sum()
            torch.autograd.grad(total, arrays)
        return total.item()

    return train


def convnet(rung):
    """Convolutions as functions of tensors, on one minibatch."""
    x, y = map(torch.from_numpy, rung.data())
    x, y = x.reshape(rung.batch, 1, rung.side, rung.side), y.long()
    values = list(map(torch.from_numpy, rung.parameters()))
    for index in range(0, len(values) - 2, 2):
        values[index] = filters(values[index]).contiguous()

    def loss_of(params):
        given = iter(params)

        def convolution(h):
            return nn.functional.conv2d(h, next(given), next(given), padding=1)

        h = torch.relu(convolution(x))
        for _ in range(rung.blocks):
            h = torch.relu(h + convolution(torch.relu(convolution(h))))
        h = nn.functional.max_pool2d(h, 2).permute(0, 2, 3, 1).flatten(1)
        return nn.functional.cross_entropy(h @ next(given) + next(given), y)

    return steps(loss_of, values)


def steps(loss_of, params):
    """Updates on one minibatch."""
    for param in params:
        param.requires_grad_()
    optimiser = optimiser_of(params)

    def train(updates):
        for _ in range(updates):
            optimiser.zero_grad()
            loss = loss_of(params)
            loss.backward()
            optimiser.step()
        return loss.item()

    return train


def sparse(rung):
    """Logistic regression on sparse CSR tensors, made of each minibatch beforehand."""
    x, y = rung.data()
    batches = []
    for start in range(0, rung.samples, rung.batch):
        rows = x[start : start + rung.batch]
        parts = (torch.from_numpy(part) for part in (rows.indptr, rows.indices, rows.data))
        batch = torch.sparse_csr_tensor(*parts, size=rows.shape)
        batches.append((batch, torch.from_numpy(y[start : start + rung.batch])))
    w = torch.zeros((rung.features, 1), requires_grad=True)
    b = torch.zeros((), requires_grad=True)
    optimiser = optimiser_of([w, b])

    def loss_of(rows, classes):
        score = (rows @ w)[:, 0] + b
        return nn.functional.binary_cross_entropy_with_logits(score, classes)

    def train(updates):
        for index in range(updates):
            optimiser.zero_grad()
            loss_of(*batches[index % len(batches)]).backward()
            optimiser.step()
        with torch.no_grad():
            return float(loss_of(*batches[0]))

    return train
