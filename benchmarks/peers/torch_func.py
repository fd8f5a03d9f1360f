"""The PyTorch that one writes by hand: `torch.func`, and the classic autograd loop."""

import numpy as np
import torch
import torch.nn.functional as F
from torch.func import grad, grad_and_value, vmap

from benchmarks._meta_step_setting import (
    ADAM_B1,
    BLOCKS,
    EPSILON,
    FILTERS,
    OUTER_RATE,
    TASKS,
    Program,
    load_tasks,
)


def maml(setting, folder, cores, *, lowering, batching) -> Program:
    """`torch.func.grad` of `grad`, under `vmap`, or compiled and one task at a time."""
    network = make_network(lowering)

    def loss(params, inputs, labels):
        return F.cross_entropy(network(params, inputs), labels)

    def task_loss(params, support_inputs, support_labels, query_inputs, query_labels):
        for _ in range(setting.inner_steps):
            grads = grad(loss)(params, support_inputs, support_labels)
            params = tuple(
                p - setting.inner_rate * g for p, g in zip(params, grads, strict=True)
            )
        return loss(params, query_inputs, query_labels)

    one_task = grad_and_value(task_loss)

    def vmapped(params, tasks):
        grads, losses = vmap(one_task, (None, 0, 0, 0, 0))(params, *tasks)
        return [g.mean(0) for g in grads], losses.mean()

    meta_grad = vmapped
    if batching == "compile":
        meta_grad = one_by_one(torch.compile(one_task))
    return make_program(meta_grad, *load_inputs(folder, lowering), cores)


def autograd_loop(setting, folder, cores) -> Program:
    """The classic loop: `torch.autograd.grad(..., create_graph=True)`."""
    network = make_network("conv2d")

    def one_task(params, support_inputs, support_labels, query_inputs, query_labels):
        params = task_params = [p.detach().requires_grad_() for p in params]
        for _ in range(setting.inner_steps):
            loss = F.cross_entropy(network(task_params, support_inputs), support_labels)
            grads = torch.autograd.grad(loss, task_params, create_graph=True)
            task_params = [
                p - setting.inner_rate * g
                for p, g in zip(task_params, grads, strict=True)
            ]
        loss = F.cross_entropy(network(task_params, query_inputs), query_labels)
        return torch.autograd.grad(loss, params), loss.detach()

    inputs = load_inputs(folder, "conv2d")
    return make_program(one_by_one(one_task), *inputs, cores)


def make_network(lowering):
    """`(params, inputs) -> logits`; params are in the order of `make_weights`.

    Convolution and normalisation are the fastest pair of each layout: `F.conv2d` with
    `F.batch_norm` on [N, C, H, W], or, on [N, H, W, C], shifted slices and a matrix
    product (im2col; `F.unfold` is slower) with the normalisation spelled out.
    """

    def conv_norm(x, kernel, scale, bias):
        x = F.conv2d(x, kernel, stride=2, padding=1)
        return F.batch_norm(x, None, None, scale, bias, training=True, eps=EPSILON)

    def im2col_norm(x, kernel, scale, bias):
        size = (x.shape[1] + 1) // 2
        x = F.pad(x, (0, 0, 1, 1, 1, 1))
        shifts = [slice(i, i + 2 * size - 1, 2) for i in range(3)]
        x = torch.cat(
            [x[:, rows, columns] for rows in shifts for columns in shifts], -1
        )
        x = x @ kernel
        x = x - x.mean((0, 1, 2), keepdim=True)
        variance = x.square().mean((0, 1, 2), keepdim=True)
        return x * (scale * torch.rsqrt(variance + EPSILON)) + bias

    block = {"conv2d": conv_norm, "im2col": im2col_norm}[lowering]
    positions = {"conv2d": (2, 3), "im2col": (1, 2)}[lowering]

    def network(params, x):
        *blocks, head_kernel, head_bias = params
        for i in range(BLOCKS):
            x = F.relu(block(x, *blocks[3 * i : 3 * i + 3]))
        return F.linear(x.mean(positions), head_kernel, head_bias)

    return network


def load_inputs(folder, lowering):
    """Parameters and tasks in the layout of the lowering."""
    channels_first = lowering == "conv2d"

    def as_parameter(name, value):
        if name.startswith("kernel"):
            flat = value.reshape(-1, FILTERS)
            value = value.transpose(3, 2, 0, 1) if channels_first else flat
        value = value.T if name == "head_kernel" else value
        return torch.from_numpy(np.ascontiguousarray(value))

    def as_inputs(images):
        images = images.transpose(0, 1, 4, 2, 3) if channels_first else images
        return torch.from_numpy(np.ascontiguousarray(images))

    def as_labels(one_hot):
        return torch.from_numpy(one_hot.argmax(-1))

    weights = np.load(folder / "weights.npz")
    params = tuple(as_parameter(name, weights[name]) for name in weights.files)
    support_x, support_y, query_x, query_y = load_tasks(folder)
    support = as_inputs(support_x), as_labels(support_y)
    return params, (*support, as_inputs(query_x), as_labels(query_y))


def one_by_one(one_task):
    """The mean of `one_task(params, *task) -> (grads, loss)` over tasks, in a loop."""

    def meta_grad(params, tasks):
        total, total_loss = None, 0.0
        for task in zip(*tasks, strict=True):
            grads, loss = one_task(params, *task)
            total_loss = total_loss + loss
            if total is None:
                total = list(grads)
            else:
                torch._foreach_add_(total, grads)
        return [g / TASKS for g in total], total_loss / TASKS

    return meta_grad


def make_program(meta_grad, params, tasks, cores) -> Program:
    torch.set_num_threads(cores)
    optimizer = torch.optim.Adam(params, lr=OUTER_RATE, betas=(ADAM_B1, 0.999))

    def step():
        grads, loss = meta_grad(params, tasks)
        for param, gradient in zip(params, grads, strict=True):
            param.grad = gradient
        optimizer.step()
        return float(loss)

    return Program(
        step=step,
        first_moment=lambda: [optimizer.state[p]["exp_avg"].numpy() for p in params],
        compile_s=None,
        temp_bytes=None,
        framework=f"torch {torch.__version__}",
    )
