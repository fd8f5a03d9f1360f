"""Meta-gradients are exact, whatever a model does with its derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeta as jm
from benchmarks import exactness
from jaxmeta import _custom_rules

# `odeint` takes longest to compile by far: see benchmarks/results/exactness.json.
KINDS = [name for name in exactness.KINDS if name != "odeint"]
REVERSAL = exactness.KINDS["gradient reversal"]


@pytest.mark.parametrize("name", KINDS)
def test_maml_is_exact_for_any_model(name):
    kind = exactness.KINDS[name]
    with jax.enable_x64(True):
        assert exactness.error_of_learner("maml", kind, 2) < 1e-8
        mode = "forward-over-reverse" if kind.is_hessian else "reverse-over-reverse"
        assert exactness.mode_of(kind) == mode


@pytest.mark.parametrize("name", exactness.LEARNERS)
def test_learners_are_exact_where_gradients_are_reversed(name):
    with jax.enable_x64(True):
        assert exactness.error_of_learner(name, REVERSAL, 1) < 1e-8


@pytest.mark.parametrize("name", exactness.ESTIMATORS)
@pytest.mark.parametrize("kind", ["gradient reversal", "tutorial custom_vjp"])
def test_back_propagation_through_a_learned_rule_is_exact(name, kind):
    with jax.enable_x64(True):
        error = exactness.error_of_estimator(name, exactness.KINDS[kind], 2)
        assert error < 1e-8


def test_forward_over_reverse_is_wrong_there():
    """What the tests above are for: measured, not supposed."""
    with jax.enable_x64(True):
        forward = {"hvp": "forward-over-reverse"}
        for name in ("maml", "imaml"):
            assert exactness.error_of_learner(name, REVERSAL, 1, **forward) > 0.01
        assert exactness.error_of_estimator("bptt", REVERSAL, 2, **forward) > 1e-3


@pytest.mark.parametrize("name", ["maml", "imaml"])
def test_forward_mode_where_the_model_has_none_is_named(name):
    kind = exactness.KINDS["tutorial custom_vjp"]
    with pytest.raises(TypeError, match=r"has a `jax\.custom_vjp` without them"):
        exactness.error_of_learner(name, kind, 1, hvp="forward-over-reverse")


@jax.custom_vjp
def _reverse_by_itself(x):
    return x


_reverse_by_itself.defvjp(
    lambda x: (x, None), lambda _, bar: (-_reverse_by_itself(bar),)
)


def test_implicit_gradients_need_no_transposed_rule():
    """`odeint` solves backwards by itself too: that cannot be transposed."""
    model = lambda b, x, k: _reverse_by_itself(jnp.tanh(x @ b["w"]))
    kind = exactness.Kind(model, exactness.numbers, exactness.SQUARE, False)
    with jax.enable_x64(True):
        assert exactness.error_of_learner("imaml", kind, 1) < 1e-8


def _newton(x):
    """A loop of unknown length without a rule: it has no reverse mode."""
    step = lambda y: 0.5 * (y + x / y)
    is_far = lambda y: jnp.any(jnp.abs(y * y - x) > 1e-5 * x)
    return jax.lax.while_loop(is_far, step, jnp.ones_like(x))


@jax.custom_vjp
def _root(x):
    return _newton(x)


# Its rule cannot be differentiated again.
_root.defvjp(lambda x: (_newton(x), x), lambda x, bar: (bar / (2 * _newton(x)),))


def test_a_rule_without_a_derivative_is_named_and_first_order_works():
    kind = exactness.Kind(
        lambda b, x, k: _root(1 + jnp.square(x @ b["w"])),
        exactness.numbers,
        exactness.SQUARE,
        False,
    )
    message = (
        "cannot be differentiated again in reverse mode.*Choose `first_order=True`"
    )
    with pytest.raises(ValueError, match=message):
        exactness.error_of_learner("maml", kind, 1)
    with pytest.raises(ValueError, match=message):
        exactness.error_of_estimator("bptt", kind, 2)
    model, task = exactness.model_of(kind), exactness.task_of(kind, jax.random.key(7))
    learner = exactness.learner_of("maml", model, 1, first_order=True)
    key = jax.random.key(0)
    grads, _ = learner.meta_grad(key, learner.init(key, task), task)
    assert np.isfinite(optax.tree.norm(grads))


def test_a_model_that_reverses_gradients():
    """Domain adaptation, as its users write it; right by finite differences."""

    @jax.custom_vjp
    def reverse(x):
        return x

    reverse.defvjp(lambda x: (x, None), lambda _, g: (-g,))

    def apply(w, x):
        return {"y": x * w[0], "d": reverse(x * w[0]) * w[1]}

    def loss(o, t):
        v = jnp.mean((o["y"] - t["y"]) ** 2)
        return v + jnp.mean((o["d"] - t["d"]) ** 2) if "d" in t else v

    x, w = jnp.array([1.0, 2.0]), jnp.array([0.5, -0.3])
    task = jm.Task(jm.Examples(x, {"y": 3 * x, "d": x}), jm.Examples(x, {"y": x}))
    model = jm.Model(lambda key, x: w, apply)
    learner = jm.maml(model, loss, inner_tx=optax.sgd(0.1), inner_steps=1)
    grads, _ = learner.meta_grad(jax.random.key(0), w, task)
    np.testing.assert_allclose(grads, [2.5138, -2.9981], atol=1e-4)


TRUE_RULES = {
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "gelu": jax.nn.gelu,
    "softmax": jax.nn.softmax,
    "logsumexp": jax.nn.logsumexp,
    "sinc": jnp.sinc,
    "xlogy": lambda x: jax.scipy.special.xlogy(x, x),
    "linear solve": lambda x: jnp.linalg.solve(jnp.eye(2) + jnp.outer(x, x), x),
    "pinv": lambda x: jnp.linalg.pinv(jnp.outer(x, x)),
    "losses": lambda x: optax.losses.safe_softmax_cross_entropy(x, x),
    "under jit": jax.jit(jax.nn.relu),
    "rematerialised": jax.checkpoint(jax.nn.relu),
}


class TestRedefinedDerivatives:
    @pytest.mark.parametrize("name", TRUE_RULES)
    def test_true_rules_are_trusted(self, name):
        fn = TRUE_RULES[name]
        assert not _custom_rules.redefined_derivatives(fn, jnp.array([0.3, 0.5]))

    @pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, jax.vmap])
    def test_rules_are_found_wherever_they_are(self, wrap):
        for fn in (exactness.reverse, exactness.round_jvp):
            step = lambda carry, _, fn=fn: (wrap(fn)(carry), None)
            loop = lambda x, step=step: jax.lax.scan(step, x, None, length=2)
            assert _custom_rules.redefined_derivatives(loop, jnp.ones(2))

    def test_a_rule_on_a_function_of_jax_is_not_trusted(self):
        floor = jax.custom_jvp(jnp.floor)
        floor.defjvps(lambda tangent, out, x: tangent)
        assert _custom_rules.redefined_derivatives(floor, jnp.ones(2))
        (found,) = _custom_rules.redefined_derivatives(exactness.reverse, jnp.ones(2))
        assert found.startswith("reverse at ") and "exactness.py:" in found


def _examples(kind):
    return exactness.task_of(kind, jax.random.key(1)).support


@pytest.mark.parametrize("name", ["tied weights", "while_loop with a rule"])
def test_gradient_fields_pass(name):
    kind = exactness.KINDS[name]
    jm.testing.check_gradient_field(
        exactness.model_of(kind), jm.losses.cross_entropy, _examples(kind)
    )


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("gradient reversal", "reverse at .*exactness.py"),
        ("straight-through, custom_jvp", "floor at"),
        ("clip in the model", "clip_gradient at"),
    ],
)
def test_what_is_no_gradient_field_is_told(name, where):
    kind = exactness.KINDS[name]
    with pytest.raises(AssertionError, match=f"not the gradient of a scalar.*{where}"):
        jm.testing.check_gradient_field(
            exactness.model_of(kind), jm.losses.cross_entropy, _examples(kind)
        )
