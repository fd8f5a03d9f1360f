"""Sinusoid regression from a few points."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta import _checks, base


def sinusoid(
    *,
    shots: int = 10,
    queries: int = 10,
    amplitude: tuple[float, float] = (0.1, 5.0),
    frequency: tuple[float, float] = (1.0, 1.0),
    phase: tuple[float, float] = (0.0, math.pi),
) -> base.SampleTask:
    r"""Tasks :math:`y = A \sin(\omega x - b)`, x uniform in [-5, 5].

    The defaults are MAML's. Meta-SGD's tasks also vary in frequency, and add the phase:
    `frequency=(0.8, 1.2), phase=(-math.pi, 0.0)`.

    Args:
      shots: N, support points. Static.
      queries: Q, query points. Static.
      amplitude: range of A.
      frequency: range of :math:`\omega`, in radians per unit of x.
      phase: range of b, in radians.

    Returns:
      `sample_task(key) -> Task` with inputs and targets [N, 1] and [Q, 1].

    Raises:
      ValueError: if `shots` or `queries` is not a positive int, or a range is not
        (low, high).

    References:
      Finn et al., ICML 2017, section 5.1; Li et al., "Meta-SGD", 2017, section 4.1.

    Example:
      >>> import jax
      >>> task = sinusoid(shots=5, queries=10)(jax.random.key(0))
      >>> task.support.inputs.shape, task.query.targets.shape
      ((5, 1), (10, 1))
    """
    _checks.check_int("shots", shots)
    _checks.check_int("queries", queries)
    ranges = {"amplitude": amplitude, "frequency": frequency, "phase": phase}
    for name, bounds in ranges.items():
        if np.shape(bounds) != (2,) or not bounds[0] <= bounds[1]:
            raise ValueError(f"`{name}` must be (low, high), got {bounds!r}.")

    def sample_task(key):
        function_key, inputs_key = jax.random.split(key)
        a, omega, b = (
            jax.random.uniform(k, (), minval=low, maxval=high)
            for k, (low, high) in zip(
                jax.random.split(function_key, 3), ranges.values(), strict=True
            )
        )
        x = jax.random.uniform(inputs_key, (shots + queries, 1), minval=-5, maxval=5)
        y = a * jnp.sin(omega * x - b)
        return base.Task(
            support=base.Examples(x[:shots], y[:shots]),
            query=base.Examples(x[shots:], y[shots:]),
        )

    return sample_task
