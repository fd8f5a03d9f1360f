"""A recipe, built."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jaxmeta import base, training


class Parts(NamedTuple):
    """What a run needs of its recipe.

    Attributes:
      train_step: of the training.
      like: shapes of its state.
      mesh: the devices it runs on.
      train_key: of the training.
      validate: `(meta_params) -> metrics`, always on the same tasks or problems.
      test: `(meta_params, *, num_tasks, inner_steps, seed) -> summary`; None is what
        the recipe says.
    """

    train_step: training.TrainStep
    like: base.TrainState
    mesh: Mesh
    train_key: jax.Array
    validate: Callable[[base.Params], dict[str, float]]
    test: Callable[..., dict[str, Any]]


def mesh_for(count: int, chunk: int | None = None) -> Mesh:
    """As many devices as share `count` tasks, in whole chunks, evenly.

    Cores of a CPU are devices. Of every process there are as many.
    """
    processes = range(jax.process_count())
    devices = [[d for d in jax.devices() if d.process_index == p] for p in processes]
    counts = range(1, min(map(len, devices)) + 1)
    even = [n for n in counts if count % (n * len(processes) * (chunk or 1)) == 0]
    # What does not divide the tasks is named by the estimator.
    each = max(even, default=1)
    return training.task_mesh([d for some in devices for d in some[:each]])
