"""Steps of users' networks in PyTorch, for `networks.py`."""

import argparse
import pathlib

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import _timing
from benchmarks.networks import INNER_RATE, Step, serve


def load(path):
    return {k: torch.from_numpy(v.copy()) for k, v in np.load(path).items()}


def norm_of(grads):
    return float(torch.sqrt(sum(g.square().sum() for g in grads)))


def lstm_optimizer(folder, name):
    """A loop over `LSTMCell`s at all coordinates, as in the well-known repositories."""
    data = load(folder / "lstm_optimizer.npz")
    theta = load(folder / "lstm_optimizer_theta.npz")
    sizes = [data[k].numel() for k in ("w1", "b1", "w2", "b2")]
    start = torch.cat([data[k].flatten() for k in ("w1", "b1", "w2", "b2")])
    cells = []
    for i in range(2):
        kernel, bias = theta[f"layer{i}_kernel"], theta[f"layer{i}_bias"]
        # Gates i, f, o, candidate to PyTorch's i, f, candidate, o.
        order = lambda x: torch.cat([x[..., :40], x[..., 60:], x[..., 40:60]], -1)
        cell = torch.nn.LSTMCell(kernel.shape[0] - 20, 20)
        with torch.no_grad():
            cell.weight_ih.copy_(order(kernel)[:-20].T)
            cell.weight_hh.copy_(order(kernel)[-20:].T)
            cell.bias_ih.copy_(order(bias))
            cell.bias_hh.zero_()
        cell.bias_hh.requires_grad_(False)
        cells.append(cell)
    head = torch.nn.Linear(20, 1)
    with torch.no_grad():
        head.weight.copy_(theta["layer2_kernel"].T)
        head.bias.copy_(theta["layer2_bias"])
    modules = [*cells, head]
    learned = [p for m in modules for p in m.parameters() if p.requires_grad]

    def loss(flat):
        w1, b1, w2, b2 = torch.split(flat, sizes)
        hidden = torch.sigmoid(data["images"] @ w1.view(784, 20) + b1)
        return F.cross_entropy(hidden @ w2.view(20, 10) + b2, data["labels"])

    def features(g, p=10.0):
        is_large = g.abs() >= np.exp(-p)
        logs = torch.log(torch.where(is_large, g.abs(), 1)) / p
        return torch.stack(
            [
                torch.where(is_large, logs, -1),
                torch.where(is_large, g.sign(), np.exp(p) * g),
            ],
            -1,
        )

    def meta_gradient():
        flat = start.clone().requires_grad_()
        state = [(torch.zeros(len(flat), 20),) * 2 for _ in cells]
        values = [loss(flat)]
        for _ in range(20):
            (g,) = torch.autograd.grad(values[-1], flat, retain_graph=True)
            x = features(g.detach())
            for i, cell in enumerate(cells):
                state[i] = cell(x, state[i])
                x = state[i][0]
            flat = flat + 0.1 * head(x)[:, 0]
            values.append(loss(flat))
        # The reported loss is the mean over the run; the meta-loss is the sum.
        total = torch.stack(values[1:]).sum()
        return total.item() / 20, torch.autograd.grad(total, learned)

    value, grads = meta_gradient()
    return Step(meta_gradient, value, norm_of(grads), 0.0, 0)


def protonet(folder, name):
    """`conv2d`, `batch_norm`, `relu`, `max_pool2d`, in either layout."""
    data = load(folder / "protonet.npz")
    layout = torch.contiguous_format
    if name == "channels last":
        layout = torch.channels_last
    place = lambda x: x.contiguous(memory_format=layout)
    support, query = (place(data[k].permute(0, 3, 1, 2)) for k in ("support", "query"))
    params = []
    for i in range(4):
        kernel = place(data[f"kernel{i}"].permute(3, 2, 0, 1))
        params += [kernel, data[f"scale{i}"], data[f"bias{i}"]]
    params = [p.detach().requires_grad_() for p in params]
    optimizer = torch.optim.Adam(params, 1e-3)
    labels = torch.arange(60).repeat_interleave(5)

    def embed(x):
        for i in range(4):
            kernel, scale, bias = params[3 * i : 3 * i + 3]
            x = F.conv2d(x, kernel, padding=1)
            x = F.batch_norm(x, None, None, scale, bias, training=True, eps=1e-5)
            x = F.max_pool2d(F.relu(x), 2)
        return x.flatten(1)

    def step():
        prototypes = embed(support)
        distances = torch.cdist(embed(query), prototypes).square()
        loss = F.cross_entropy(-distances, labels)
        optimizer.zero_grad()
        loss.backward()
        norm = norm_of(p.grad for p in params)
        optimizer.step()
        return loss.item(), norm

    value, norm = step()
    return Step(step, value, norm, 0.0, 0)


def load_weights(folder, name):
    """The weights as leaves, kernels as PyTorch has them, in the layout `name`."""
    layout = torch.channels_last if name == "channels last" else torch.contiguous_format

    def leaf(weight):
        if weight.ndim == 4:
            weight = weight.permute(3, 2, 0, 1).contiguous(memory_format=layout)
        return weight.detach().requires_grad_()

    weights = {k: leaf(v) for k, v in load(folder / "weights.npz").items()}
    data = load(folder / "episode.npz")
    place = lambda x: x.permute(0, 3, 1, 2).contiguous(memory_format=layout)
    support, query = (place(data[k]) for k in ("support", "query"))
    labels = torch.arange(5), torch.arange(5).repeat_interleave(len(query) // 5)
    return weights, support, query, labels


def normalized_conv(weights, x, kernel, norm):
    kernel = weights[kernel]
    x = F.conv2d(x, kernel, padding=kernel.shape[-1] // 2)
    scale, bias = weights[f"{norm}/scale"], weights[f"{norm}/bias"]
    return F.batch_norm(x, None, None, scale, bias, training=True, eps=1e-5)


def resnet12(weights, x):
    for i in range(4):
        block = f"ResidualBlock_{i}"
        names = ("_shortcut", "_0", "_1", "_2")
        layers = [
            (f"{block}/kernel{name}", f"{block}/BatchNorm_{k}")
            for k, name in enumerate(names)
        ]
        shortcut = normalized_conv(weights, x, *layers[0])
        for j, layer in enumerate(layers[1:]):
            x = normalized_conv(weights, F.leaky_relu(x, 0.1) if j else x, *layer)
        x = F.leaky_relu(F.max_pool2d(x + shortcut, 2), 0.1)
    return x.mean((2, 3))


def vgg16(weights, x):
    layer = 0
    for block, layers in enumerate((2, 2, 3, 3, 3)):
        names = [f"_Layer_{layer + i}" for i in range(layers - 1)] + [f"Block_{block}"]
        layer += layers - 1
        for name in names:
            x = normalized_conv(weights, x, f"{name}/kernel", f"{name}/BatchNorm_0")
            x = F.relu(x)
        x = F.max_pool2d(x, 2)
    return x.mean((2, 3))


def resnet_episode(folder, name):
    weights, support, query, (_, labels) = load_weights(folder, name)

    def gradient():
        prototypes = resnet12(weights, support)
        distances = torch.cdist(resnet12(weights, query), prototypes).square()
        loss = F.cross_entropy(-distances, labels)
        return loss.item(), torch.autograd.grad(loss, list(weights.values()))

    value, grads = gradient()
    return Step(gradient, value, norm_of(grads), 0.0, 0)


def exact_maml(embed, inner_steps):
    def prepare(folder, name):
        weights, *sets, labels = load_weights(folder, name)

        def loss(weights, i):
            outputs = embed(weights, sets[i])
            logits = outputs @ weights["head/kernel"] + weights["head/bias"]
            return F.cross_entropy(logits, labels[i])

        def gradient():
            fast = weights
            for _ in range(inner_steps):
                grads = torch.autograd.grad(
                    loss(fast, 0), list(fast.values()), create_graph=True
                )
                fast = {
                    k: v - INNER_RATE * g
                    for (k, v), g in zip(fast.items(), grads, strict=True)
                }
            value = loss(fast, 1)
            return value.item(), torch.autograd.grad(value, list(weights.values()))

        value, grads = gradient()
        return Step(gradient, value, norm_of(grads), 0.0, 0)

    return prepare


STEPS = {
    "LSTM optimizer, 20 updates": lstm_optimizer,
    "ProtoNet, Conv4, 60 ways": protonet,
    "ProtoNet, ResNet-12": resnet_episode,
    "MAML, VGG-16, 1 step": exact_maml(vgg16, 1),
    "MAML, VGG-16, 5 steps": exact_maml(vgg16, 5),
    "MAML, VGG-16, 20 steps": exact_maml(vgg16, 20),
    "MAML, ResNet-12, 5 steps": exact_maml(resnet12, 5),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--serve", nargs=3, required=True)
    row, name, folder = parser.parse_args().serve
    _timing.pin_to_cores(1)
    torch.set_num_threads(1)
    serve(STEPS[row](pathlib.Path(folder), name))


if __name__ == "__main__":
    main()
