"""Few-shot classification episodes from images that live on the device."""

from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxmeta import _checks, _random, base


def few_shot(
    dataset: Any,
    *,
    ways: int,
    shots: int,
    queries: int,
    rotations: bool = False,
    within_groups: bool = False,
) -> base.SampleTask:
    """Samples W-way episodes: classes, their order and their examples at random.

    Support and query examples of a task are distinct. Labels mean nothing outside the
    task: classes come in random order.

    Args:
      dataset: an `ImageClasses` (what the loaders of `jaxmeta.tasks` return), or a
        uint8 array [C, E, H, W] or [C, E, H, W, channels]. It is held once, as uint8,
        on the device.
      ways: W, classes a task. Static.
      shots: support examples a class. Static.
      queries: query examples a class. Static.
      rotations: every class turned by 0, 90, 180 or 270 degrees is a class of its own,
        so that there are 4 C classes and each class of a task has its own rotation.
        Needs square images. Static.
      within_groups: all classes of a task come from one group, such as an alphabet of
        Omniglot: the part of the class's name before the first "/". Groups with at
        least W classes come equally often, whatever their size; rotated classes belong
        to the group of their class, and count in it. Static.

    Returns:
      `sample_task(key) -> Task`, a `jax.tree_util.Partial` whose leaves are the data:
      images [W * shots, H, W, channels] and [W * queries, ...] in [0, 1], targets
      one-hot [..., W]. Examples are sorted by class.

    Raises:
      ValueError: if the data are not such an array or hold no classes, there are more
        ways than classes, or a class has fewer than shots + queries examples; with
        `within_groups`, if classes have no names or no group has W classes.

    Example:
      >>> import jax, numpy as np
      >>> images = np.zeros((20, 20, 28, 28), np.uint8)
      >>> sample_task = few_shot(images, ways=5, shots=1, queries=15)
      >>> task = sample_task(jax.random.key(0))
      >>> task.support.inputs.shape, task.query.targets.shape
      ((5, 28, 28, 1), (75, 5))
    """
    for name, value in (("ways", ways), ("shots", shots), ("queries", queries)):
        _checks.check_int(name, value)
    images, num_examples = _as_arrays(dataset)
    num_turns = 4 if rotations else 1
    num_classes = images.shape[0] * num_turns
    if rotations and images.shape[2] != images.shape[3]:
        raise ValueError(
            f"`rotations` needs square images, got {images.shape[2:4]} pixels."
        )
    if ways > num_classes:
        raise ValueError(
            f"`ways` must be at most the data's {num_classes} classes, got {ways}."
        )
    fewest = int(num_examples.min())
    if shots + queries > fewest:
        raise ValueError(
            f"`shots` + `queries` must be at most {fewest}, the examples of the "
            f"smallest class, got {shots} + {queries}."
        )
    groups = _group_classes(dataset, images, ways, num_turns) if within_groups else None

    def sample_task(images, num_examples, groups, key):
        class_key, example_key = jax.random.split(key)
        is_allowed = jnp.ones(num_classes, bool)
        if groups is not None:
            group_key, class_key = jax.random.split(class_key)
            group = jax.random.randint(group_key, (), 0, jnp.max(groups) + 1)
            is_allowed = groups == group
        classes = _random.draw_distinct(class_key, is_allowed, ways)
        classes, turns = jnp.divmod(classes, 4) if rotations else (classes, None)
        is_real = jnp.arange(images.shape[1])[None] < num_examples[classes][:, None]
        examples = _random.draw_distinct(example_key, is_real, shots + queries)
        chosen = images[classes[:, None], examples]  # [W, shots + queries, H, W, c]
        if turns is not None:
            chosen = jax.vmap(_turn)(chosen, turns)
        chosen = chosen.astype(jnp.result_type(float)) / 255
        labels = jnp.eye(ways, dtype=chosen.dtype)
        return base.Task(
            support=examples_by_class(chosen[:, :shots], labels),
            query=examples_by_class(chosen[:, shots:], labels),
        )

    return Partial(sample_task, jnp.asarray(images), jnp.asarray(num_examples), groups)


def _group_classes(dataset, images, ways, num_turns):
    """Returns each class's group [C * num_turns]: 0, 1, ..., or -1 if it is small."""
    names = getattr(dataset, "names", ())
    if len(names) != len(images):
        raise ValueError(
            "`within_groups` needs the names of all classes, such as "
            f"'Greek/character03', got {len(names)} for {len(images)} classes. Give "
            "them: `jaxmeta.tasks.image_classes(images, names)`."
        )
    names = [str(name).split("/", 1)[0] for name in names]
    sizes = {name: num_turns * count for name, count in Counter(names).items()}
    large = sorted(name for name, size in sizes.items() if size >= ways)
    if not large:
        name = max(sizes, key=sizes.__getitem__)
        raise ValueError(
            f"`ways` must be at most {sizes[name]}, the classes of the largest group "
            f"({name!r}), got {ways}. The group is what stands before the first '/' of "
            "a class's name."
        )
    numbers = {name: number for number, name in enumerate(large)}
    groups = np.array([numbers.get(name, -1) for name in names], np.int32)
    return jnp.asarray(np.repeat(groups, num_turns))


def _turn(images, turns):
    """Turns [N, H, W, c] anticlockwise by `turns` (0 to 3) quarters."""
    quarters = [jnp.rot90(images, k, axes=(1, 2)) for k in range(4)]
    return jnp.stack(quarters)[turns]


def examples_by_class(images: Any, labels: Any) -> base.Examples:
    """Flattens [W, N, ...], of JAX or NumPy, to [W * N, ...] beside one-hot targets."""
    ways, count = images.shape[:2]
    targets = labels.repeat(count, axis=0)
    return base.Examples(images.reshape(ways * count, *images.shape[2:]), targets)


def _as_arrays(dataset):
    """Returns uint8 images [C, E, H, W, channels] and the examples of each class."""
    images = getattr(dataset, "images", dataset)
    shape, dtype = getattr(images, "shape", ()), getattr(images, "dtype", None)
    if dtype != np.uint8 or len(shape) not in (4, 5):
        got = type(images) if dtype is None else f"shape {shape} and dtype {dtype}"
        raise ValueError(
            "`dataset` must be uint8 images [classes, examples, height, width] or "
            f"[..., channels], got {got}. A folder of images is read by "
            "`jaxmeta.tasks.load_folder`; of splits take one, say `splits.train`; "
            "some of the classes are `dataset.take_classes(range(10))`."
        )
    if 0 in shape:
        raise ValueError(f"`dataset` is empty: its images have shape {shape}.")
    if len(shape) == 4:
        images = images[..., None]
    num_examples = getattr(dataset, "num_examples", None)
    if num_examples is None:
        num_classes, num_each = images.shape[:2]
        num_examples = np.full(num_classes, num_each, np.int32)
    return images, np.asarray(num_examples)
