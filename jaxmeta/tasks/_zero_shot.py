"""Zero-shot classification: classes are given by a description, not by examples.

Letters, besides those of `jaxmeta.base`: A attributes per class, S seen classes, U
unseen classes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxmeta import _checks, _random, base
from jaxmeta.tasks import _few_shot


class AttributeData(NamedTuple):
    """Examples and attributes of classes, on the host.

    Attributes:
      features: [N, ...] float, or uint8 images.
      labels: [N] int32, rows of `attributes`.
      attributes: [C, A] float32.
      seen: [S] int32, training classes.
      unseen: [U] int32, test classes.
      names: C names.
      held_out: [...] int32, examples that no task draws.
    """

    features: np.ndarray
    labels: np.ndarray
    attributes: np.ndarray
    seen: np.ndarray
    unseen: np.ndarray
    names: tuple[str, ...]
    held_out: np.ndarray = np.zeros(0, np.int32)


def zero_shot(
    data: AttributeData,
    *,
    ways: int,
    queries: int,
    classes: np.ndarray | None = None,
) -> base.SampleTask:
    """Samples tasks with class descriptions instead of examples as support.

    They are ordinary tasks, for learners that embed the two sets by different models:
    `prototypical` and `relation` with `support_model`.

    Args:
      data: from `load_attributes`, `attribute_world` or `image_attributes`. Its
        features are stored once on the device, in their own dtype.
      ways: W, classes per task. Static.
      queries: Q, query examples per class. Static.
      classes: the classes to draw from; None is `data.seen`.

    Returns:
      `sample_task(key) -> Task`, a `jax.tree_util.Partial` whose leaves are the data:
      support inputs are attributes [W, A] of distinct classes in random order, support
      targets the identity [W, W]; query inputs are features [W * Q, ...] (uint8 images
      scaled to [0, 1]) of distinct examples, sorted by class, query targets one-hot
      [W * Q, W].

    Raises:
      ValueError: if a count is not a positive int, there are more ways than classes, a
        class has fewer than `queries` examples, or `classes` are not in the data.

    Example:
      >>> import jax
      >>> data = attribute_world(jax.random.key(0))
      >>> task = zero_shot(data, ways=5, queries=3)(jax.random.key(1))
      >>> task.support.inputs.shape, task.query.inputs.shape, task.query.targets.shape
      ((5, 20), (15, 40), (15, 5))

    References:
      Snell, Swersky and Zemel, "Prototypical Networks for Few-shot Learning", NeurIPS
      2017, Section 2.7. https://arxiv.org/abs/1703.05175
    """
    _checks.check_int("ways", ways)
    _checks.check_int("queries", queries)
    classes = _known_classes(data, data.seen if classes is None else classes)
    if ways > len(classes):
        raise ValueError(
            f"`ways` must be at most the {len(classes)} classes, got {ways}."
        )
    rows = _rows_by_class(data, classes)
    counts = np.array([len(mine) for mine in rows], np.int32)
    if queries > counts.min():
        fewest = classes[counts.argmin()]
        raise ValueError(
            f"`queries` must be at most {counts.min()}, the examples of the smallest "
            f"class ({data.names[fewest]!r}), got {queries}."
        )
    # Rows of each class's examples, [C, most], zero-padded; `counts` masks the padding.
    table = np.zeros((len(classes), counts.max()), np.int32)
    for padded, mine in zip(table, rows, strict=True):
        padded[: len(mine)] = mine

    def sample_task(features, attributes, table, counts, key):
        class_key, example_key = jax.random.split(key)
        chosen = _random.draw_distinct(class_key, jnp.ones(counts.shape, bool), ways)
        is_real = jnp.arange(table.shape[1])[None] < counts[chosen][:, None]
        drawn = _random.draw_distinct(example_key, is_real, queries)
        inputs = features[jnp.take_along_axis(table[chosen], drawn, 1)]
        labels = jnp.eye(ways)
        return base.Task(
            support=base.Examples(
                attributes[chosen].astype(jnp.result_type(float)), labels
            ),
            query=_few_shot.examples_by_class(
                _few_shot.as_inputs(inputs, features.ndim - 1), labels
            ),
        )

    arrays = data.features, data.attributes[classes], table, counts
    return Partial(sample_task, *map(jnp.asarray, arrays))


def zero_shot_test(
    data: AttributeData, *, classes: np.ndarray | None = None
) -> base.Task:
    """Returns a single task with all classes and all their examples.

    Args:
      data: as in `zero_shot`.
      classes: W classes, in the order of the labels; None is `data.unseen`.

    Returns:
      Support inputs [W, A] and targets [W, W]; query inputs [Q, ...] and targets
      [Q, W], in the order of the data.

    Raises:
      ValueError: if `classes` are not in the data or have no examples.

    Example:
      >>> import jax
      >>> task = zero_shot_test(attribute_world(jax.random.key(0), examples=7))
      >>> task.support.inputs.shape, task.query.targets.shape
      ((20, 20), (140, 20))
    """
    if classes is None and not len(data.unseen):
        raise ValueError("`data` has no unseen classes: pass `classes` to test on.")
    classes = _known_classes(data, data.unseen if classes is None else classes)
    chosen = np.sort(np.concatenate(_rows_by_class(data, classes)))
    position = np.zeros(len(data.attributes), np.int32)
    position[classes] = np.arange(len(classes))
    labels = jnp.eye(len(classes))
    inputs = jnp.asarray(data.features[chosen])
    attributes = jnp.asarray(data.attributes[classes], jnp.result_type(float))
    return base.Task(
        support=base.Examples(attributes, labels),
        query=base.Examples(
            _few_shot.as_inputs(inputs, inputs.ndim - 1),
            labels[position[data.labels[chosen]]],
        ),
    )


def attribute_world(
    key: jax.Array,
    *,
    num_classes: int = 60,
    num_seen: int = 40,
    num_attributes: int = 20,
    num_features: int = 40,
    examples: int = 40,
    noise: float = 1.0,
    unexplained: float = 0.2,
    nonlinear: float = 0.2,
) -> AttributeData:
    r"""Draws synthetic data in which attributes determine the examples of a class.

    With attributes :math:`a \sim N(0, I)`, a class has the prototype :math:`p = (1 - r)
    a W + r \tanh(a V) + u\,\varepsilon`, and each of its examples is :math:`p +
    s\,\varepsilon'`. The entries of W and V are normal with variance 1 / A, so that the
    features of a W have variance one; every :math:`\varepsilon` is standard normal.

    Args:
      key: the same key gives the same data.
      num_classes: C.
      num_seen: S, number of training classes, chosen at random.
      num_attributes: A.
      num_features: D.
      examples: E, examples per class.
      noise: s, standard deviation of examples within a class.
      unexplained: u, standard deviation of a class's part not due to attributes.
      nonlinear: r in [0, 1], weight of the nonlinear map.

    Returns:
      The data, N = C E examples sorted by class.

    Raises:
      ValueError: if a count is not a positive int, no class is left unseen, or `noise`,
        `unexplained` or `nonlinear` is out of range.

    Example:
      >>> import jax
      >>> data = attribute_world(jax.random.key(0), num_classes=5, num_seen=3)
      >>> data.features.shape, data.attributes.shape, data.unseen.shape
      ((200, 40), (5, 20), (2,))
    """
    counts = {
        "num_classes": num_classes,
        "num_seen": num_seen,
        "num_attributes": num_attributes,
        "num_features": num_features,
        "examples": examples,
    }
    for name, count in counts.items():
        _checks.check_int(name, count)
    if num_seen >= num_classes:
        raise ValueError(
            f"`num_seen` must leave some of the {num_classes} classes unseen, got "
            f"{num_seen}."
        )
    for name, value in (("noise", noise), ("unexplained", unexplained)):
        if value < 0:
            raise ValueError(f"`{name}` must not be negative, got {value}.")
    if not 0 <= nonlinear <= 1:
        raise ValueError(f"`nonlinear` must be in [0, 1], got {nonlinear}.")
    keys = jax.random.split(key, 6)
    attributes = jax.random.normal(keys[0], (num_classes, num_attributes))
    straight, bent = (
        attributes
        @ jax.random.normal(k, (num_attributes, num_features))
        / num_attributes**0.5
        for k in keys[1:3]
    )
    own = unexplained * jax.random.normal(keys[3], straight.shape)
    prototypes = (1 - nonlinear) * straight + nonlinear * jnp.tanh(bent) + own
    shape = (num_classes, examples, num_features)
    features = prototypes[:, None] + noise * jax.random.normal(keys[4], shape)
    order = np.asarray(jax.random.permutation(keys[5], num_classes), np.int32)
    return AttributeData(
        features=np.asarray(features, np.float32).reshape(-1, num_features),
        labels=np.repeat(np.arange(num_classes, dtype=np.int32), examples),
        attributes=np.asarray(attributes, np.float32),
        seen=np.sort(order[:num_seen]),
        unseen=np.sort(order[num_seen:]),
        names=tuple(map(str, range(num_classes))),
    )


def _known_classes(data: AttributeData, classes: np.ndarray) -> np.ndarray:
    """Returns `classes` as an array, checked."""
    classes = np.asarray(classes)
    num_classes = len(data.attributes)
    if (
        classes.ndim != 1
        or not classes.size
        or not np.issubdtype(classes.dtype, np.integer)
        or len(np.unique(classes)) != len(classes)
        or not 0 <= classes.min() <= classes.max() < num_classes
    ):
        raise ValueError(
            f"`classes` must be distinct integers from 0 to "
            f"{num_classes - 1}, got {classes}."
        )
    return classes


def _rows_by_class(data: AttributeData, classes: np.ndarray) -> list[np.ndarray]:
    """Returns the examples of each class, without held-out ones."""
    free = np.ones(len(data.labels), bool)
    free[data.held_out] = False
    rows = [np.flatnonzero(free & (data.labels == c)) for c in classes]
    empty = [
        data.names[c] for c, mine in zip(classes, rows, strict=True) if not len(mine)
    ]
    if empty:
        raise ValueError(
            f"The classes {empty} have no examples to draw: remove them from `classes`."
        )
    return rows
