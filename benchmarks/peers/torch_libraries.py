"""PyTorch's meta-learning libraries, each used as its own MAML example uses it.

The interpreter of each: `requirements-learn2learn.txt`, `requirements-higher.txt`,
`requirements-torchopt.txt`; one environment can hold all three.
"""

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks._meta_step_setting import (
    BLOCKS,
    EPSILON,
    FILTERS,
    TASKS,
    WAYS,
    Program,
)
from benchmarks.peers import torch_func


class Network(nn.Module):
    """Its parameters are in the order of `make_weights`."""

    def __init__(self, params):
        super().__init__()
        layers = []
        for i in range(BLOCKS):
            channels = 1 if i == 0 else FILTERS
            layers += [
                nn.Conv2d(channels, FILTERS, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(FILTERS, EPSILON, track_running_stats=False),
                nn.ReLU(),
            ]
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(FILTERS, WAYS)
        with torch.no_grad():
            for ours, value in zip(self.parameters(), params, strict=True):
                ours.copy_(value)

    def forward(self, inputs):
        return self.head(self.blocks(inputs).mean((2, 3)))


def learn2learn(setting, folder, cores) -> Program:
    from learn2learn.algorithms import MAML

    params, tasks = torch_func.load_inputs(folder, "conv2d")
    maml = MAML(Network(params), lr=setting.inner_rate)

    def query_loss(support_inputs, support_labels, query_inputs, query_labels):
        learner = maml.clone()
        for _ in range(setting.inner_steps):
            learner.adapt(F.cross_entropy(learner(support_inputs), support_labels))
        return F.cross_entropy(learner(query_inputs), query_labels)

    return backward_loop(query_loss, maml.module, tasks, cores)


def higher(setting, folder, cores) -> Program:
    from higher import innerloop_ctx

    params, tasks = torch_func.load_inputs(folder, "conv2d")
    module = Network(params)
    inner_optimizer = torch.optim.SGD(module.parameters(), lr=setting.inner_rate)

    def query_loss(support_inputs, support_labels, query_inputs, query_labels):
        with innerloop_ctx(module, inner_optimizer, copy_initial_weights=False) as (
            fast,
            differentiable,
        ):
            for _ in range(setting.inner_steps):
                loss = F.cross_entropy(fast(support_inputs), support_labels)
                differentiable.step(loss)
            return F.cross_entropy(fast(query_inputs), query_labels)

    return backward_loop(query_loss, module, tasks, cores)


def torchopt(setting, folder, cores) -> Program:
    import torchopt as library

    params, tasks = torch_func.load_inputs(folder, "conv2d")
    module = Network(params)
    inner_optimizer = library.MetaSGD(module, lr=setting.inner_rate)
    start = library.extract_state_dict(module, by="reference")
    rates = library.extract_state_dict(inner_optimizer, by="reference")

    def query_loss(support_inputs, support_labels, query_inputs, query_labels):
        library.recover_state_dict(module, start)
        library.recover_state_dict(inner_optimizer, rates)
        for _ in range(setting.inner_steps):
            loss = F.cross_entropy(module(support_inputs), support_labels)
            inner_optimizer.step(loss)
        return F.cross_entropy(module(query_inputs), query_labels)

    # The module holds what the last task made of them: these are the first ones.
    return backward_loop(query_loss, module, tasks, cores)


def torchopt_vmap(setting, folder, cores) -> Program:
    import torchopt as library

    network = torch_func.make_network("conv2d")
    inner_optimizer = library.sgd(setting.inner_rate)

    def loss(params, inputs, labels):
        return F.cross_entropy(network(params, inputs), labels)

    def task_loss(params, support_inputs, support_labels, query_inputs, query_labels):
        state = inner_optimizer.init(params)
        for _ in range(setting.inner_steps):
            grads = torch.func.grad(loss)(params, support_inputs, support_labels)
            updates, state = inner_optimizer.update(
                grads, state, params=params, inplace=False
            )
            params = library.apply_updates(params, updates, inplace=False)
        return loss(params, query_inputs, query_labels)

    one_task = torch.func.grad_and_value(task_loss)

    def meta_grad(params, tasks):
        grads, losses = torch.vmap(one_task, (None, 0, 0, 0, 0))(params, *tasks)
        return [g.mean(0) for g in grads], losses.mean()

    return torch_func.make_program(
        meta_grad, *torch_func.load_inputs(folder, "conv2d"), cores
    )


def backward_loop(query_loss, module, tasks, cores) -> Program:
    """`query_loss(*task).backward()` for each task, into the module's parameters."""
    params = tuple(module.parameters())

    def meta_grad(params, tasks):
        for param in params:
            param.grad = None
        total = 0.0
        for task in zip(*tasks, strict=True):
            loss = query_loss(*task)
            loss.backward()
            total = total + loss.detach()
        return [param.grad / TASKS for param in params], total / TASKS

    return torch_func.make_program(meta_grad, params, tasks, cores)
