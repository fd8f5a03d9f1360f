"""Tests that the contract's checks see what is broken."""

import itertools

import jax
import jax.numpy as jnp
import pytest

import jaxmeta as jm
from tests._learners import maml, regression_task


def _scaled(factor):
    """A learner whose meta-gradients are times `factor(grads, key, task)`."""
    learner = maml()

    def meta_grad(key, meta_params, task, **extra):
        grads, info = learner.meta_grad(key, meta_params, task, **extra)
        return jax.tree.map(lambda g: factor(g, key, task), grads), info

    return learner._replace(meta_grad=meta_grad)


def _takes_no_extra():
    learner = maml()
    return learner._replace(
        meta_grad=lambda key, meta_params, task: learner.meta_grad(
            key, meta_params, task
        )
    )


def _depends_on_the_outside():
    """Differs between traces, as code with a side effect does."""
    calls = []

    def factor(g, key, task):
        calls.append(key)
        return g * (1.0 + 0.1 * len(calls))

    return _scaled(factor)


def _of_two_losses():
    learner = maml()

    def meta_grad(key, meta_params, task, **extra):
        grads, info = learner.meta_grad(key, meta_params, task, **extra)
        return grads, info._replace(loss=jnp.stack([info.loss, info.loss]))

    return learner._replace(meta_grad=meta_grad)


BROKEN = {
    "zero": (lambda: _scaled(lambda g, *_: 0 * g), "zero everywhere"),
    "nan": (lambda: _scaled(lambda g, *_: g / 0), "is not finite in"),
    "shape": (lambda: _scaled(lambda g, *_: g[None]), "shaped as `meta_params`"),
    "dtype": (
        lambda: _scaled(lambda g, *_: g.astype("float32")),
        "must keep the dtype of parameters",
    ),
    "loss": (_of_two_losses, "`info.loss` must be a scalar"),
    "extra": (_takes_no_extra, "must accept and ignore any"),
    "outside": (_depends_on_the_outside, "must equal"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_learner_is_told_what_is_broken(name):
    make, message = BROKEN[name]
    with pytest.raises(AssertionError, match=message):
        jm.testing.check_learner(make(), regression_task)


def test_a_learner_that_is_traced_again_and_again_is_found():
    """Tasks that grow want a trace each."""
    calls = itertools.count(1)

    def sample_task(key):
        size = next(calls)
        return jax.tree.map(lambda x: x[:size], regression_task(key))

    with pytest.raises(AssertionError, match="traced 3 times"):
        jm.testing.check_learner(maml(), sample_task)


def test_numbers_of_python_are_as_good_as_arrays():
    """What `jit` makes an array of is a number without it."""
    learner = maml()

    def meta_grad(key, meta_params, task, **extra):
        grads, info = learner.meta_grad(key, meta_params, task, **extra)
        return grads, info._replace(metrics={"rate": 0.5, "steps": 2})

    jm.testing.check_learner(learner._replace(meta_grad=meta_grad), regression_task)
