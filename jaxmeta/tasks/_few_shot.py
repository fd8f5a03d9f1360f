"""Few-shot classification episodes from examples stored on the device."""

from collections import Counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxmeta import _checks, _random, base
from jaxmeta.tasks import _datasets

# Added to the error about invalid data sets.
_HINT = (
    "Read a folder of images with `jaxmeta.tasks.load_folder`; of splits pass one, "
    "e.g. `splits.train`; select classes with `dataset.take_classes(range(10))`."
)


class Range(NamedTuple):
    """Inclusive range of the number of ways or shots."""

    lowest: int
    highest: int


def few_shot(
    dataset: Any,
    *,
    ways: int | tuple[int, int],
    shots: int | tuple[int, int],
    queries: int,
    balanced: bool = True,
    rotations: bool = False,
    within_groups: bool = False,
) -> base.SampleTask:
    """Samples W-way episodes with random classes, class order and examples.

    Support and query examples of a task are distinct. Labels have no meaning outside
    the task: classes are in random order.

    Args:
      dataset: an `ImageClasses` (from the loaders of `jaxmeta.tasks`), or an array
        [C, E, ...], stored once on the device in its own dtype. Examples are

        - images, uint8 [H, W] or [H, W, channels] (or with more axes): scaled to
          [0, 1];
        - of any other shape or type, such as features [D], float images
          [H, W, channels] or token ids [L], including uint8 [L]: unchanged, with floats
          in JAX's default float dtype.
      ways: W, classes per task, or (lowest, highest): each task draws its own number
        uniformly. Static.
      shots: support examples per class, or (lowest, highest), drawn likewise. Static.
      queries: query examples per class. Static.
      balanced: all classes of a task have the same number of shots; False draws one per
        class. Static.
      rotations: each class rotated by 0, 90, 180 or 270 degrees is a separate class, so
        there are 4 C classes and each class of a task has its own rotation. Requires
        square images. Static.
      within_groups: all classes of a task come from one group, such as an alphabet of
        Omniglot: the part of the class name before the first "/". Groups with at least
        W (the lowest) classes are equally likely, whatever their size; rotated classes
        belong to the group of their class and count towards it. A group with fewer
        classes than the highest W has tasks of up to all of them. Static.

    Returns:
      `sample_task(key) -> Task`, a `jax.tree_util.Partial` whose leaves are the data:
      inputs [W * shots, ...] and [W * queries, ...], targets one-hot [..., W]. Examples
      are sorted by class. If ways or shots vary, all tasks have the shapes of the
      highest, with all-zero rows (inputs and targets) for absent examples: padding,
      which losses, metrics and learners exclude.

    Raises:
      ValueError: if the data are not such an array or hold no classes, there are more
        ways than classes, or a class has fewer than shots + queries examples; with
        `rotations`, if the data are not square images; with `within_groups`, if classes
        have no names or no group has W classes.

    References:
      Triantafillou et al., "Meta-Dataset: A Dataset of Datasets for Learning to Learn
      from Few Examples", ICLR 2020, Section 3.2, for tasks with varying ways and shots.
      https://arxiv.org/abs/1903.03096

    Example:
      >>> import jax, numpy as np
      >>> images = np.zeros((20, 20, 28, 28), np.uint8)
      >>> sample_task = few_shot(images, ways=5, shots=1, queries=15)
      >>> task = sample_task(jax.random.key(0))
      >>> task.support.inputs.shape, task.query.targets.shape
      ((5, 28, 28, 1), (75, 5))
      >>> sample_task = few_shot(images, ways=(2, 5), shots=(1, 3), queries=15)
      >>> task = sample_task(jax.random.key(0))
      >>> task.support.inputs.shape, task.query.targets.shape
      ((15, 28, 28, 1), (75, 5))
    """
    ways, shots = as_range("ways", ways), as_range("shots", shots)
    _checks.check_int("queries", queries)
    examples, num_examples = _as_arrays(dataset)
    num_turns = 4 if rotations else 1
    num_classes = examples.shape[0] * num_turns
    if rotations:
        _check_square(examples)
    _check_enough(num_classes, int(num_examples.min()), ways, shots, queries)
    groups = None
    if within_groups:
        groups = _group_classes(dataset, examples, ways.lowest, num_turns)
    is_fixed = ways.lowest == ways.highest and shots.lowest == shots.highest

    def sample_task(examples, num_examples, groups, key):
        key, size_key = (key, None) if is_fixed else jax.random.split(key)
        class_key, example_key = jax.random.split(key)
        is_allowed = jnp.ones(num_classes, bool)
        if groups is not None:
            group_key, class_key = jax.random.split(class_key)
            # Groups are numbered 0, 1, ...; -1, a small one, is never drawn.
            group = jax.random.randint(group_key, (), 0, jnp.max(groups) + 1)
            is_allowed = groups == group
        classes = _random.draw_distinct(class_key, is_allowed, ways.highest)
        # Class 4 c + r is class c rotated by r quarter turns.
        classes, turns = jnp.divmod(classes, 4) if rotations else (classes, None)
        is_real = jnp.arange(examples.shape[1])[None] < num_examples[classes][:, None]
        count = shots.highest + queries
        drawn = _random.draw_distinct(example_key, is_real, count)
        chosen = examples[classes[:, None], drawn]  # [W, shots + queries, ...]
        if turns is not None:
            chosen = jax.vmap(_turn)(chosen, turns)
        chosen = as_inputs(chosen, chosen.ndim - 2)
        num_shots = None
        if size_key is not None:
            # At most the classes of the group; those drawn beyond it become padding.
            most = jnp.minimum(ways.highest, jnp.sum(is_allowed))
            num_shots = _draw_shots(size_key, ways, most, shots, balanced)
        return _as_task(chosen, shots.highest, num_shots)

    return Partial(
        sample_task, jnp.asarray(examples), jnp.asarray(num_examples), groups
    )


def as_range(name: str, value: int | tuple[int, int]) -> Range:
    """Converts an int or (lowest, highest) to a `Range`; raises for anything else."""
    if not isinstance(value, tuple | list):
        _checks.check_int(name, value)
        return Range(value, value)
    if len(value) != 2 or value[0] > value[1]:
        raise ValueError(f"`{name}` must be an int or (lowest, highest), got {value}.")
    for i, end in enumerate(value):
        _checks.check_int(f"{name}[{i}]", end)
    return Range(*value)


def as_inputs(examples: jax.Array, num_axes: int) -> jax.Array:
    """Converts stored examples with `num_axes` axes each to inputs.

    Pixels, uint8 with two axes or more, are scaled to [0, 1]; floats get JAX's default
    float dtype. Other integers, such as token ids, are unchanged.
    """
    dtype = jnp.result_type(float)
    if is_pixels(examples.dtype, num_axes):
        return examples.astype(dtype) / 255
    is_float = jnp.issubdtype(examples.dtype, jnp.floating)
    return examples.astype(dtype) if is_float else examples


def is_pixels(dtype: Any, num_axes: int) -> bool:
    """Whether examples with this dtype and number of axes are pixels in 0 ... 255."""
    return dtype == np.uint8 and num_axes >= 2


def _as_task(examples, shots, num_shots):
    """Makes a task from examples [W, shots + queries, ...], sorted by class.

    Args:
      examples: the first `shots` of each class are the support.
      shots: the highest number of shots.
      num_shots: [W], shots of each class, 0 for absent classes; further examples become
        padding. None is `shots` each.
    """
    labels = jnp.eye(examples.shape[0], dtype=jnp.result_type(float))
    support, query = examples[:, :shots], examples[:, shots:]
    if num_shots is None:
        return base.Task(
            examples_by_class(support, labels), examples_by_class(query, labels)
        )
    is_real = jnp.arange(examples.shape[1])[None] < num_shots[:, None]
    is_real = is_real.at[:, shots:].set(num_shots[:, None] > 0)
    axes = tuple(range(2, examples.ndim))
    examples = jnp.where(jnp.expand_dims(is_real, axes), examples, 0)
    return base.Task(
        examples_by_class(examples[:, :shots], labels, is_real[:, :shots]),
        examples_by_class(examples[:, shots:], labels, is_real[:, shots:]),
    )


def examples_by_class(
    examples: Any, labels: Any, is_real: Any | None = None
) -> base.Examples:
    """Flattens JAX or NumPy examples [W, N, ...] to [W * N, ...], with one-hot targets.

    Targets are zero where `is_real` [W, N] is false.
    """
    ways, count = examples.shape[:2]
    targets = labels.repeat(count, axis=0)
    if is_real is not None:
        targets = targets * is_real.reshape(-1, 1)
    return base.Examples(examples.reshape(ways * count, *examples.shape[2:]), targets)


def _draw_shots(key, ways, most, shots, balanced):
    """Draws the shots of each class, [W]: 0 beyond the ways of the task."""
    ways_key, shots_key = jax.random.split(key)
    num_ways = jax.random.randint(ways_key, (), ways.lowest, most + 1)
    shape = (1 if balanced else ways.highest,)
    num_shots = jax.random.randint(shots_key, shape, shots.lowest, shots.highest + 1)
    return jnp.where(jnp.arange(ways.highest) < num_ways, num_shots, 0)


def _check_enough(num_classes, fewest, ways, shots, queries):
    """Raises unless the largest task can be drawn."""
    if ways.highest > num_classes:
        raise ValueError(
            f"`ways` must be at most the data's {num_classes} classes, got "
            f"{ways.highest}."
        )
    if shots.highest + queries > fewest:
        raise ValueError(
            f"`shots` + `queries` must be at most {fewest}, the examples of the "
            f"smallest class, got {shots.highest} + {queries}."
        )


def _check_square(examples):
    """Raises unless examples are square images."""
    if examples.ndim != 5:
        raise ValueError(
            "`rotations` requires images [classes, examples, height, width, channels], "
            f"got {examples.dtype} of shape {examples.shape}."
        )
    if examples.shape[2] != examples.shape[3]:
        raise ValueError(
            f"`rotations` requires square images, got {examples.shape[2:4]} pixels."
        )


def _group_classes(dataset, images, ways, num_turns):
    """Returns each class's group [C * num_turns]: 0, 1, ..., or -1 if it is small."""
    names = getattr(dataset, "names", ())
    if len(names) != len(images):
        raise ValueError(
            "`within_groups` requires names of all classes, such as "
            f"'Greek/character03', got {len(names)} for {len(images)} classes. Pass "
            "them: `jaxmeta.tasks.image_classes(images, names)`."
        )
    names = [str(name).split("/", 1)[0] for name in names]
    sizes = {name: num_turns * count for name, count in Counter(names).items()}
    large = sorted(name for name, size in sizes.items() if size >= ways)
    if not large:
        name = max(sizes, key=sizes.__getitem__)
        raise ValueError(
            f"`ways` must be at most {sizes[name]}, the classes of the largest group "
            f"({name!r}), got {ways}. The group is the part of a class name before the "
            "first '/'."
        )
    numbers = {name: number for number, name in enumerate(large)}
    groups = np.array([numbers.get(name, -1) for name in names], np.int32)
    return jnp.asarray(np.repeat(groups, num_turns))


def _turn(images, turns):
    """Rotates [N, H, W, c] anticlockwise by `turns` (0 to 3) quarter turns."""
    # All four, then a gather: `rot90` by a traced number is not possible.
    quarters = [jnp.rot90(images, k, axes=(1, 2)) for k in range(4)]
    return jnp.stack(quarters)[turns]


def _as_arrays(dataset):
    """Returns examples [C, E, ...], images with channels, and their number [C]."""
    examples = getattr(dataset, "images", dataset)
    _datasets.check_examples("dataset", examples, _HINT)
    if examples.dtype == np.uint8 and examples.ndim == 4:
        examples = examples[..., None]
    num_examples = getattr(dataset, "num_examples", None)
    if num_examples is None:
        num_classes, num_each = examples.shape[:2]
        num_examples = np.full(num_classes, num_each, np.int32)
    return examples, np.asarray(num_examples)
