"""Learned optimizers, and what goes into them, print as the calls that made them."""

import functools

import jax.numpy as jnp
import optax
import pytest

import jaxmeta as jm
from jaxmeta import _describe

CALLS = [
    "lstm()",
    "lstm(hidden_size=4, num_layers=1, state_dtype=bfloat16)",
    "lstm_gac(num_averaged=1)",
    "ntm_bfgs(window=3)",
    "rnnprop(decay=0.9)",
    "mlp(hidden_size=8)",
    "meta_lstm(p=5.0)",
    "learned_sgd(learning_rate=0.1, shared_by='leaf')",
    "curvature_sgd(max_size=3)",
    "learned_rate(adam, learning_rate=0.1)",
    "partition({'a': mlp(), 'b': lstm(hidden_size=3)}, adam)",
]


@pytest.mark.parametrize("call", CALLS)
def test_a_learned_optimizer_prints_as_its_call(call):
    names = vars(jm.optimizers) | {"adam": optax.adam, "bfloat16": jnp.bfloat16}
    assert repr(eval(call, dict(names))) == call


def test_one_that_nobody_described_has_the_name_of_its_maker():
    def mine():
        return jm.LearnedOptimizer(lambda key, params=None: 0.1, transform)

    def transform(theta):
        return optax.sgd(theta)

    assert repr(mine()).startswith("LearnedOptimizer(test_one_that")


def _factory(*, value=None):
    return _describe.describe(_factory, locals())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (optax.sgd(0.1), "<scale>"),
        (
            optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)),
            "<clip_by_global_norm, scale_by_adam, scale>",
        ),
        (optax.identity(), "<identity>"),
        (jm.models.MLP([40, 1], norm="batch"), "MLP([40, 1], norm='batch')"),
        (jm.Model(len, max), "Model(len, max)"),
        (jm.optimizers.mlp(), "mlp()"),
        ({"accuracy": jm.losses.accuracy}, "{'accuracy': accuracy}"),
        (functools.partial(jm.losses.accuracy, 1), "accuracy"),
        (jnp.ones((2, 3)), "float32[2,3]"),
        ((1,), "(1,)"),
        ("x" * 100, f"'{'x' * 76}..."),
    ],
    ids=lambda x: x if isinstance(x, str) and len(x) < 60 else "",
)
def test_values_in_one_short_line(value, text):
    assert _factory(value=value) == f"_factory(value={text})"


def test_defaults_are_left_out():
    assert _factory() == "_factory()"
