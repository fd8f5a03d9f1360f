"""What a recipe builds."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jaxmeta import base, training


class Parts(NamedTuple):
    """Everything a run needs from its recipe.

    Attributes:
      train_step: initialises and makes meta-steps.
      like: shapes of the training state.
      mesh: devices to train on.
      train_key: key of the training.
      validate: `(meta_params) -> metrics`, always on the same tasks or problems.
      test: `(meta_params, *, num_tasks, inner_steps, seed) -> summary`; None means the
        recipe's setting. Of learners also `inductive`, whether to test that way too.
    """

    train_step: training.TrainStep
    like: base.TrainState
    mesh: Mesh
    train_key: jax.Array
    validate: Callable[[base.Params], dict[str, float]]
    test: Callable[..., dict[str, Any]]


def mesh_for(count: int, chunk: int | None = None) -> Mesh:
    """Makes a mesh of the most devices that divide `count` tasks into whole chunks.

    The cores of a CPU are devices. Every process contributes the same number.
    """
    processes = range(jax.process_count())
    devices = [[d for d in jax.devices() if d.process_index == p] for p in processes]
    counts = range(1, min(map(len, devices)) + 1)
    even = [n for n in counts if count % (n * len(processes) * (chunk or 1)) == 0]
    # Where nothing divides the tasks, the estimator raises with the numbers.
    each = max(even, default=1)
    return training.task_mesh([d for some in devices for d in some[:each]])
