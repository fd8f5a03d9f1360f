"""Few-shot classification episodes from data that do not fit on the device."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxmeta import _checks, base
from jaxmeta.tasks import _few_shot


def stream_few_shot(
    source: Any,
    labels: Sequence[int] | np.ndarray,
    *,
    ways: int | tuple[int, int],
    shots: int | tuple[int, int],
    queries: int,
    num_tasks: int,
    balanced: bool = True,
    transform: Callable[[Any], np.ndarray] | None = None,
    seed: int = 0,
    mesh: Mesh | None = None,
    num_threads: int = 16,
) -> base.TaskStream:
    """Streams W-way episodes from any random-access source, read by grain's threads.

    Episodes depend only on the seed, the meta-step and their index in its batch:
    resumed runs and other numbers of processes, each of which reads its own share, see
    the same episodes.

    Args:
      source: `source[i]` is an example: a tensorflow-datasets data source, a NumPy
        memory map, a list of paths. Threads read it concurrently.
      labels: [len(source)], the class of each example; any numbers.
      ways: W, classes per task, or (lowest, highest), as in `few_shot`. Static.
      shots: support examples per class, or (lowest, highest). Static.
      queries: query examples per class. Static.
      num_tasks: T, tasks per meta-step over all processes.
      balanced: all classes of a task have the same number of shots, as in `few_shot`.
        Static.
      transform: converts examples of the source to arrays of one shape, e.g. decodes
        and resizes an image. None scales uint8 images, [H, W] or [H, W, channels], to
        [0, 1] and leaves other examples unchanged.
      seed: seed of the episodes.
      mesh: shards the batches over its devices, as in `jaxmeta.estimators.over_tasks`.
      num_threads: number of prefetching threads.

    Returns:
      A `TaskStream` for `jaxmeta.estimators.over_stream` and `jaxmeta.training.fit`.
      Targets are one-hot [..., W]; examples are sorted by class, with zeros as padding
      for fewer ways or shots, as in `few_shot`.

    Raises:
      ValueError: if a count is not a positive int, labels and examples differ in
        number, too few classes have `shots` + `queries` examples, processes do not
        divide the tasks, or examples differ in shape.
      ImportError: if grain is not installed (extra `stream`).

    Example:
      >>> import numpy as np, jaxmeta as jm
      >>> images = np.zeros((60, 28, 28, 1), np.uint8)  # e.g. a memory map
      >>> stream = stream_few_shot(  # doctest: +SKIP
      ...     images, np.arange(60) // 6, ways=5, shots=1, queries=5, num_tasks=4)
      >>> next(stream.read(0)).support.inputs.shape  # doctest: +SKIP
      (4, 5, 28, 28, 1)
    """
    ways, shots = _few_shot.as_range("ways", ways), _few_shot.as_range("shots", shots)
    counts = {"queries": queries, "num_tasks": num_tasks, "num_threads": num_threads}
    for name, value in counts.items():
        _checks.check_int(name, value)
    num_processes = jax.process_count()
    if num_tasks % num_processes:
        raise ValueError(
            f"`num_tasks` must be a multiple of the {num_processes} processes, got "
            f"{num_tasks}."
        )
    _checks.check_int("seed", seed, minimum=0)
    grain = _import_grain()
    classes = _large_classes(labels, len(source), ways.highest, shots.highest + queries)
    each = num_tasks // num_processes
    own = range(jax.process_index() * each, (jax.process_index() + 1) * each)
    to_array = _to_input if transform is None else transform
    like = np.asarray(to_array(source[0]))
    _check_numbers(like)

    def read_one(index):
        array = np.asarray(to_array(source[index]))
        if (array.shape, array.dtype) != (like.shape, like.dtype):
            raise ValueError(
                f"Example {index} has shape {array.shape} and dtype {array.dtype}, the "
                f"first one {like.shape} and {like.dtype}: `transform` must return the "
                "same for all."
            )
        return array

    def episode(step, place):
        # A generator per task: no state to save, so any process can draw any episode.
        rng = np.random.default_rng((seed, step, place))
        drawn = _draw_episode(rng, classes, ways, shots, queries, balanced)
        is_real = drawn >= 0
        examples = np.zeros((*drawn.shape, *like.shape), like.dtype)
        examples[is_real] = [read_one(int(i)) for i in drawn[is_real]]
        targets = np.eye(ways.highest, dtype=np.float32)
        support, query = (
            _few_shot.examples_by_class(examples[:, part], targets, is_real[:, part])
            for part in (slice(shots.highest), slice(shots.highest, None))
        )
        return base.Task(support, query)

    class Batches:
        """Batches by meta-step, longer than any training."""

        def __len__(self):
            return 2**40

        def __getitem__(self, index):
            tasks = [episode(int(index), place) for place in own]
            return jax.tree.map(lambda *leaves: np.stack(leaves), *tasks)

    def read(step: int) -> Iterator[base.Task]:
        options = grain.ReadOptions(
            num_threads=num_threads, prefetch_buffer_size=num_threads
        )
        batches = grain.MapDataset.source(Batches())[step:]
        return iter(batches.to_iter_dataset(options))

    return base.TaskStream(num_tasks, episode(0, 0), read, mesh)


def _check_numbers(example):
    if not (np.issubdtype(example.dtype, np.number) or example.dtype == bool):
        raise ValueError(
            "`source` or `transform` must return arrays of numbers, but the first has "
            f"dtype {example.dtype}."
        )


def _large_classes(labels, num_examples, ways, least):
    """Returns the indices of each class that has enough examples."""
    labels = np.asarray(labels)
    if labels.shape != (num_examples,):
        raise ValueError(
            f"`labels` must have shape ({num_examples},), one class per example of "
            f"`source`, got {labels.shape}."
        )
    # Sorted by label, each class is a contiguous run of indices from its start.
    order = np.argsort(labels, kind="stable")
    _, starts = np.unique(labels[order], return_index=True)
    classes = [c for c in np.split(order, starts[1:]) if len(c) >= least]
    if ways > len(classes):
        raise ValueError(
            f"`ways` must be at most {len(classes)}, the classes with `shots` + "
            f"`queries` = {least} examples, got {ways}."
        )
    return classes


def _draw_episode(rng, classes, ways, shots, queries, balanced):
    """Draws indices [W, shots + queries], at the highest W and shots; -1 is padding."""
    num_ways = _draw_count(rng, ways)
    chosen = rng.choice(len(classes), num_ways, replace=False)
    num_shots = [_draw_count(rng, shots)] * num_ways
    if not balanced:
        num_shots = [_draw_count(rng, shots) for _ in chosen]
    drawn = np.full((ways.highest, shots.highest + queries), -1)
    for row, c, count in zip(drawn, chosen, num_shots, strict=False):
        mine = rng.choice(classes[c], count + queries, replace=False)
        row[:count], row[shots.highest :] = mine[:count], mine[count:]
    return drawn


def _draw_count(rng, span):
    """Draws a number of ways or shots; a fixed one consumes no random number."""
    if span.lowest == span.highest:
        return span.lowest
    return int(rng.integers(*span, endpoint=True))


def _to_input(example):
    example = np.asarray(example)
    is_pixels = _few_shot.is_pixels(example.dtype, example.ndim)
    return np.float32(example) / 255 if is_pixels else example


def _import_grain():
    try:
        import grain
    except ImportError as error:
        raise ImportError("Streams require grain: pip install grain") from error
    return grain
