"""Memory and time of one task's exact meta-gradient in PyTorch, for `inner_memory.py`.

The classic loop, `torch.autograd.grad(..., create_graph=True)`, whose graph learn2learn
and higher keep too; and `torch.func.grad` of `torch.func.grad`.
"""

import argparse
import json
import pathlib

import torch
import torch.nn.functional as F

from benchmarks import _timing
from benchmarks.peers import torch_func


def autograd(loss, rate, steps):
    def meta_grad(params, support, query):
        params = task_params = [p.detach().requires_grad_() for p in params]
        for _ in range(steps):
            grads = torch.autograd.grad(
                loss(task_params, *support), task_params, create_graph=True
            )
            task_params = descend(task_params, grads, rate)
        return torch.autograd.grad(loss(task_params, *query), params)

    return meta_grad


def functional(loss, rate, steps):
    def meta_loss(params, support, query):
        for _ in range(steps):
            params = descend(params, torch.func.grad(loss)(params, *support), rate)
        return loss(params, *query)

    return torch.func.grad(meta_loss)


def descend(params, grads, rate):
    return tuple(p - rate * g for p, g in zip(params, grads, strict=True))


METHODS = {"autograd": autograd, "torch.func": functional}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--method", choices=METHODS, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    network = torch_func.make_network("conv2d")

    def loss(params, inputs, labels):
        return F.cross_entropy(network(params, inputs), labels)

    params, tasks = torch_func.load_inputs(args.folder, "conv2d")
    support, query = [x[0] for x in tasks[:2]], [x[0] for x in tasks[2:]]
    # The libraries' own memory, and the query's gradient: all that follows is growth.
    METHODS["autograd"](loss, args.rate, 0)(params, support, query)
    meta_grad = METHODS[args.method](loss, args.rate, args.steps)
    before = _timing.peak_memory()
    found = meta_grad(params, support, query)
    after = _timing.peak_memory()
    run = _timing.repeat(
        lambda: meta_grad(params, support, query), seconds=args.seconds
    )
    norm = torch.sqrt(sum(g.square().sum() for g in found))
    report = {
        "temp_mib": (after - before) / 2**20,
        "ms": 1e3 * run.median_s,
        "iqr_ms": 1e3 * run.iqr_s,
        "compile_s": 0.0,
        "norm": float(norm),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
