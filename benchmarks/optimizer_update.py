"""What an update by a learned optimizer costs, beside Adam's; and meta-training.

    python -m benchmarks.optimizer_update

One process a number of cores. Three questions: time and state of an update; memory of
an unroll with rematerialization and without; meta-steps a second, against a scan
written by hand.
"""

import argparse
import json
import pathlib
import subprocess
import sys

from benchmarks import _timing

RESULTS = pathlib.Path(__file__).parent / "results" / "optimizer_update.json"
SIZES = {"16 k": 2**14, "1 M": 2**20, "4 M": 2**22, "16 M": 2**24}
NUM_LEAVES = {"few leaves": 2, "many leaves": 128}
BLOCK = 2**16


def rules():
    """Name -> (transformation, the largest number of parameters it is asked for)."""
    import jax
    import jax.numpy as jnp
    import optax

    from jaxmeta import optimizers

    def made(lopt):
        return lopt.transform(lopt.init(jax.random.key(0)))

    blocked = optimizers.lstm(state_dtype=jnp.bfloat16, block_size=BLOCK)
    return {
        "optax.adam": (optax.adam(1e-3), 2**24),
        "lstm": (made(optimizers.lstm()), 2**22),
        "lstm, bfloat16 state": (
            made(optimizers.lstm(state_dtype=jnp.bfloat16)),
            2**22,
        ),
        "lstm, bfloat16 state, blocks": (made(blocked), 2**24),
        "rnnprop": (made(optimizers.rnnprop()), 2**20),
        "mlp": (made(optimizers.mlp()), 2**22),
        "general": (optimizers.pretrained("general", total_steps=1000), 2**22),
        "celo": (made(optimizers.celo(1000)), 2**20),
        "celo_adam": (made(optimizers.celo_adam(1000)), 2**22),
        "small_fc_mlp": (made(optimizers.small_fc_mlp()), 2**20),
        "velo": (made(optimizers.velo(1000)), 2**20),
    }


def time_update(tx, num_params, num_leaves, seconds):
    """Times one donated update; returns nanoseconds and bytes a parameter."""
    import jax
    import jax.numpy as jnp
    import optax

    size = num_params // num_leaves
    params = {f"leaf {i}": jnp.full(size, 0.1) for i in range(num_leaves)}
    tx = optax.with_extra_args_support(tx)  # Some are told the loss.
    state = jax.jit(tx.init)(params)
    state_bytes = sum(x.nbytes for x in jax.tree.leaves(state))

    def update(params, state):
        updates, state = tx.update(params, state, params, value=jnp.ones(()))
        return jax.tree.map(jnp.add, params, updates), state

    compiled = _timing.compile_apart(update, params, state, donate=(0, 1))

    def call():
        nonlocal params, state
        params, state = jax.block_until_ready(compiled.call(params, state))

    call()
    run = _timing.repeat(call, seconds=seconds)
    return {
        "ns_per_parameter": 1e9 * run.median_s / num_params,
        "iqr_ns_per_parameter": 1e9 * run.iqr_s / num_params,
        "state_bytes_per_parameter": state_bytes / num_params,
        "temporary_bytes_per_parameter": compiled.temp_bytes / num_params,
        "compile_s": compiled.compile_s,
    }


def mnist_like():
    """The paper's MNIST classifier, on noise: its cost does not know."""
    import jax

    from jaxmeta import models, problems

    images = jax.random.uniform(jax.random.key(0), (1000, 784))
    labels = jax.random.randint(jax.random.key(1), (1000,), 0, 10)
    model = models.MLP([20, 10], activation=jax.nn.sigmoid)
    return problems.classification(images, labels, model, init_scale=0.01)


def unroll_memory():
    """Temporary MiB of one meta-gradient on the MNIST classifier, 15,910 parameters."""
    import jax

    from jaxmeta import estimators, optimizers

    found = {}
    for horizon in (20, 100):
        for rematerialize in (False, True):
            estimator = estimators.bptt(
                optimizers.lstm(),
                mnist_like(),
                horizon=horizon,
                num_problems=1,
                rematerialize=rematerialize,
            )
            shapes = jax.eval_shape(estimator.init, jax.random.key(0))
            compiled = _timing.compile_apart(
                estimator.estimate, jax.random.key(0), *shapes
            )
            name = f"{horizon} updates, rematerialize={rematerialize}"
            found[name] = compiled.temp_bytes / 2**20
    return found


def by_hand(problem, unroll, num_problems):
    """A truncated unroll as one writes it: flax's cells under vmap, grad of a scan."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    from jaxmeta import optimizers

    preprocess = optimizers.log_gradient()
    cells = [nn.OptimizedLSTMCell(20), nn.OptimizedLSTMCell(20)]

    def init(key):
        keys = jax.random.split(key, 3)
        zeros = (jnp.zeros(20), jnp.zeros(20))
        return {
            "first": cells[0].init(keys[0], zeros, jnp.zeros(2)),
            "second": cells[1].init(keys[1], zeros, jnp.zeros(20)),
            "head": 0.2 * jax.random.normal(keys[2], (20,)),
        }

    def coordinate(theta, state, grad):
        state1, x = cells[0].apply(theta["first"], state[0], preprocess(grad))
        state2, x = cells[1].apply(theta["second"], state[1], x)
        return (state1, state2), 0.1 * x @ theta["head"]

    def start(key):
        flat, _ = jax.flatten_util.ravel_pytree(problem.init(key, None))
        zeros = jnp.zeros((flat.size, 20))
        return flat, ((zeros, zeros), (zeros, zeros))

    _, unravel = jax.flatten_util.ravel_pytree(problem.init(jax.random.key(0), None))

    def loss(theta, key, flat, state):
        def step(carry, key):
            flat, state = carry
            f = lambda flat: problem.loss(unravel(flat), None, key)
            grad = jax.lax.stop_gradient(jax.grad(f)(flat))
            state, updates = jax.vmap(coordinate, (None, 0, 0))(theta, state, grad)
            flat = flat + updates
            return (flat, state), f(flat)

        carry, losses = jax.lax.scan(step, (flat, state), jax.random.split(key, unroll))
        return jnp.sum(losses), carry

    def estimate(key, theta, flats, states):
        keys = jax.random.split(key, num_problems)
        grads, carry = jax.vmap(jax.grad(loss, has_aux=True), (None, 0, 0, 0))(
            theta, keys, flats, states
        )
        return jax.tree.map(lambda g: jnp.mean(g, 0), grads), carry

    return init, start, estimate


def meta_steps(seconds):
    """Seconds a first-order meta-step: 20 updates of one MNIST classifier."""
    import jax

    from jaxmeta import estimators, optimizers

    problem, unroll = mnist_like(), 20
    key = jax.random.key(0)
    found = {}
    for rematerialize in (True, False):
        estimator = estimators.truncated_bptt(
            optimizers.lstm(),
            problem,
            unroll=unroll,
            horizon=100,
            num_problems=1,
            second_order=False,
            rematerialize=rematerialize,
        )
        theta, runs = estimator.init(key)
        timing = _timing.time_compiled(
            estimator.estimate, key, theta, runs, seconds=seconds
        )
        found[f"jaxmeta, rematerialize={rematerialize}"] = timing._asdict() | {
            "run": timing.run._asdict()
        }
    init, start, estimate = by_hand(problem, unroll, 1)
    flat, state = jax.vmap(start)(key[None])
    timing = _timing.time_compiled(
        estimate, key, init(key), flat, state, seconds=seconds
    )
    found["by hand"] = timing._asdict() | {"run": timing.run._asdict()}
    return found


def measure(cores, seconds, sizes):
    """All of it, in this process; prints JSON."""
    _timing.pin_to_cores(cores)
    found = {"update": {}}
    for name, (tx, most) in rules().items():
        for size in sizes:
            num_params = SIZES[size]
            for leaves, num_leaves in NUM_LEAVES.items():
                if num_params > most:
                    continue
                row = time_update(tx, num_params, num_leaves, seconds)
                found["update"].setdefault(name, {})[f"{size}, {leaves}"] = row
                print(name, size, leaves, row, file=sys.stderr, flush=True)
    if cores == 1:
        found["unroll_mib"] = unroll_memory()
    found["meta_step"] = meta_steps(seconds)
    print(json.dumps(found))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--cores", type=int, nargs="*", default=[1, 2])
    parser.add_argument(
        "--sizes", nargs="*", choices=SIZES, default=list(SIZES), help="16 M is slow"
    )
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.measure, args.seconds, args.sizes)
        return
    result = {"environment": _timing.environment(("jaxmeta", "jax", "jaxlib", "optax"))}
    for cores in args.cores:
        command = [sys.executable, "-m", "benchmarks.optimizer_update"]
        options = ["--measure", str(cores), "--seconds", str(args.seconds)]
        options += ["--sizes", *args.sizes]
        done = subprocess.run(command + options, stdout=subprocess.PIPE, check=True)
        result[f"{cores} cores"] = json.loads(done.stdout)
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
