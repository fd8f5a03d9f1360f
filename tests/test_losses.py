"""Losses and metrics, against NumPy; wrong shapes are named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmeta as jm

LOGITS = np.array([[2.0, -1.0, 0.5], [0.0, 0.0, 3.0], [1.0, 4.0, 1.0], [5.0, 0.0, 0.0]])
LABELS = np.array([0, 1, 1, 2])


def test_cross_entropy_takes_labels_and_one_hot():
    shares = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    expected = -np.log(shares[np.arange(4), LABELS]).mean()
    logits, labels = jnp.asarray(LOGITS), jnp.asarray(LABELS)
    for targets in (labels, jax.nn.one_hot(labels, 3)):
        got = jm.losses.cross_entropy(logits, targets)
        np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_accuracy_takes_labels_and_one_hot():
    logits, labels = jnp.asarray(LOGITS), jnp.asarray(LABELS)
    for targets in (labels, jax.nn.one_hot(labels, 3)):
        assert jm.losses.accuracy(logits, targets) == 0.5


def test_accuracy_of_nothing_known_is_not_chance():
    outputs = jnp.array([[jnp.nan, jnp.nan], [0.0, 1.0]])
    assert jnp.isnan(jm.losses.accuracy(outputs, jnp.array([0, 1])))


def test_labels_that_are_no_class():
    logits, labels = jnp.asarray(LOGITS), jnp.array([3, 1, -1, 0])
    assert jnp.isnan(jm.losses.cross_entropy(logits, labels))
    assert jm.losses.accuracy(logits, labels) == 0.25


def test_squared_error_is_a_mean():
    outputs, targets = jnp.array([[1.0], [4.0]]), jnp.array([[0.0], [1.0]])
    assert jm.losses.squared_error(outputs, targets) == 5.0


@pytest.mark.parametrize(
    ("loss", "outputs", "targets", "message"),
    [
        ("squared_error", (6, 1), (6,), r"`targets` must have the shape of `outputs`"),
        ("cross_entropy", (3, 5), (3, 3), "has 5 outputs, but `targets` have 3"),
        ("cross_entropy", (3, 5), (2,), r"one-hot \(3, 5\) or integer labels \(3,\)"),
        ("cross_entropy", (3, 5), (3,), r"must be integers, got float32: .*astype"),
        ("cross_entropy", (3,), (3,), r"`outputs` must be logits \[N, W\], got \(3,\)"),
        ("accuracy", (3, 5), (3, 3), "has 5 outputs, but `targets` have 3"),
    ],
)
def test_wrong_targets_are_named(loss, outputs, targets, message):
    with pytest.raises(ValueError, match=message):
        getattr(jm.losses, loss)(jnp.zeros(outputs), jnp.zeros(targets))
