"""Meta-trains "general", the optimizer to drop in, over unlike problems.

    python -m benchmarks.general_optimizer --out runs/general

Whole runs of fifteen families of small networks on embedded data, by evolution
strategies: a horizon of 80 to 4,000 updates for each family and meta-step, uniform in
the logarithm; the meta-loss is the logarithm of the full-data loss at the end over
that at the start. A run that was interrupted goes on from its last checkpoint.
"""

import argparse
import pathlib
from collections.abc import Sequence

import jax
import optax

import jaxmeta as jm


def train_step(
    start: pathlib.Path | None,
    steps: int,
    pairs: int,
    horizon: tuple[int, int],
    rate: float,
    sigma: float,
) -> jm.training.TrainStep:
    """Returns the meta-step over all families, which goes on from `start`."""
    lopt = jm.optimizers.learned_adam()
    if start is not None:
        like = jax.eval_shape(lopt.init, jax.random.key(0))
        theta = jm.training.load(start, like=like)
        lopt = lopt._replace(init=lambda key, params=None: theta)
    mesh = jm.training.task_mesh()
    estimator = jm.estimators.mixture(
        {
            name: jm.estimators.es(
                lopt,
                problem,
                horizon=horizon,
                num_problems=pairs,
                sigma=sigma,
                meta_loss="log",
                mesh=mesh,
            )
            for name, problem in jm.problems.small_networks().items()
        }
    )
    schedule = optax.warmup_cosine_decay_schedule(0, rate, 20, steps, 0.05 * rate)
    return jm.training.make_train_step(estimator, optax.adam(schedule, b2=0.995))


def main(argv: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the run")
    parser.add_argument("--start", type=pathlib.Path, help="weights to go on from")
    parser.add_argument("--steps", type=int, default=1200, help="meta-steps")
    parser.add_argument("--pairs", type=int, default=8, help="of runs per family")
    parser.add_argument("--horizon", type=int, nargs=2, default=(80, 4000))
    parser.add_argument("--rate", type=float, default=0.01)
    parser.add_argument("--sigma", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--devices", type=int, default=2)
    args = parser.parse_args(argv)
    jax.config.update("jax_num_cpu_devices", args.devices)
    options = (
        args.start,
        args.steps,
        args.pairs,
        tuple(args.horizon),
        args.rate,
        args.sigma,
    )
    result = jm.training.fit(
        train_step(*options),
        num_steps=args.steps,
        key=jax.random.key(args.seed),
        directory=args.out,
        log_every=10,
        validate_every=50,
        report=lambda record: print(record, flush=True),
    )
    jm.training.save(args.out / "theta.safetensors", result.state.meta_params)


if __name__ == "__main__":
    main()
