"""Are meta-gradients exact, whatever the model does with its derivatives?

Thirteen kinds of model under every learner with exact second order, and under
back-propagation through a learned optimizer, against `jax.grad` of the program written
by hand, in float64:

    python -m benchmarks.exactness

writes `results/exactness.json`: the relative error, and how the Hessian-vector products
were taken.
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.experimental import ode
from jax.flatten_util import ravel_pytree

import jaxmeta as jm
from jaxmeta import _unroll

WAYS, FEATURES, RATE = 2, 3, 0.3


class Kind(NamedTuple):
    """A kind of model: maps [N, 3], or what it is given, to logits [N, 2]."""

    features: Callable[..., jax.Array]  # (body, inputs, key) -> [N, 3]
    inputs: Callable[[jax.Array], Any]  # key -> inputs of four examples
    body: dict[str, tuple[int, ...]]  # names and shapes of its parameters
    is_hessian: bool  # whether forward over reverse is right


# Custom rules, true and untrue.


@jax.custom_vjp
def reverse(x):
    return x


reverse.defvjp(lambda x: (x, None), lambda _, bar: (-bar,))

round_jvp = jax.custom_jvp(jnp.floor)
round_jvp.defjvp(lambda primals, tangents: (jnp.floor(*primals), *tangents))


@jax.custom_vjp
def round_vjp(x):
    return jnp.floor(x)


round_vjp.defvjp(lambda x: (round_vjp(x), None), lambda _, bar: (bar,))


@jax.custom_vjp
def clip_gradient(x):
    return x


clip_gradient.defvjp(lambda x: (x, None), lambda _, bar: (jnp.clip(bar, -0.05, 0.05),))


@jax.custom_vjp
def sine_times(x, y):
    """JAX's tutorial: its forward rule calls the function itself."""
    return jnp.sin(x) * y


sine_times.defvjp(
    lambda x, y: (sine_times(x, y), (jnp.cos(x), jnp.sin(x), y)),
    lambda kept, bar: (kept[0] * bar * kept[2], kept[1] * bar),
)


@jax.custom_jvp
def newton_root(x):
    """The square root by Newton's iteration."""
    step = lambda y: 0.5 * (y + x / y)
    tolerance = 8 * jnp.finfo(x.dtype).eps * x  # Rounding leaves 2 to 3.
    is_far = lambda y: jnp.any(jnp.abs(y * y - x) > tolerance)
    return jax.lax.while_loop(is_far, step, jnp.ones_like(x))


@newton_root.defjvp
def _(primals, tangents):
    root = newton_root(*primals)
    return root, tangents[0] / (2 * root)


# The models.


def numbers(key):
    return jax.random.normal(key, (4, FEATURES))


def linear(body, x):
    return jnp.tanh(x @ body["w"])


def odeint(body, x, key):
    flow = lambda y, t, w: jnp.tanh(y @ w)
    times = jnp.array([0.0, 0.5])
    return ode.odeint(flow, x, times, body["w"], rtol=1e-12, atol=1e-12)[-1]


def whiten(body, x, key):
    h = linear(body, x)
    factor = jnp.linalg.cholesky(h.T @ h + jnp.eye(FEATURES))
    return jax.scipy.linalg.solve_triangular(factor, h.T, lower=True).T


def lstm(body, inputs, key):
    """Reads each sequence as far as its length."""
    x, lengths = inputs["x"], inputs["lengths"]  # [N, T, 3], [N]

    def step(carry, each):
        (h, c), (now, t) = carry, each
        i, f, g, o = jnp.split(jnp.concatenate([now, h], -1) @ body["w"], 4, -1)
        new_c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        new_h = jax.nn.sigmoid(o) * jnp.tanh(new_c)
        reads = (t < lengths)[:, None]
        return (jnp.where(reads, new_h, h), jnp.where(reads, new_c, c)), None

    start = (jnp.zeros((x.shape[0], FEATURES)),) * 2
    times = jnp.arange(x.shape[1])
    return jax.lax.scan(step, start, (x.swapaxes(0, 1), times))[0][0]


def sequences(key):
    x_key, length_key = jax.random.split(key)
    x = jax.random.normal(x_key, (4, 3, FEATURES))
    return {"x": x, "lengths": jax.random.randint(length_key, (4,), 1, 4)}


def attention(body, x, key):
    """Over positions, with dropout in passes on which gradients are taken."""
    q, k, v = jnp.split(x @ body["w"], 3, -1)  # [N, T, 3]
    weights = jax.nn.softmax(q @ k.swapaxes(1, 2))
    if key is not None:
        weights = weights * jax.random.bernoulli(key, 0.7, weights.shape) / 0.7
    return jnp.mean(weights @ v, 1)


def tied(body, x, key):
    return jax.nn.gelu(x @ body["w"]) @ body["w"].T


SQUARE = {"w": (FEATURES, FEATURES)}
KINDS = {
    "gradient reversal": Kind(
        lambda b, x, k: linear(b, x) + reverse(linear(b, x) * b["v"]),
        numbers,
        SQUARE | {"v": (1, FEATURES)},
        False,
    ),
    "straight-through, custom_jvp": Kind(
        lambda b, x, k: jnp.sin(round_jvp(3 * linear(b, x)) + x), numbers, SQUARE, False
    ),
    "straight-through, custom_vjp": Kind(
        lambda b, x, k: jnp.sin(round_vjp(3 * linear(b, x)) + x), numbers, SQUARE, False
    ),
    "clip in the model": Kind(
        lambda b, x, k: clip_gradient(linear(b, x)), numbers, SQUARE, False
    ),
    "tutorial custom_vjp": Kind(
        lambda b, x, k: sine_times(x @ b["w"], x), numbers, SQUARE, False
    ),
    "odeint": Kind(odeint, numbers, SQUARE, False),
    "while_loop with a rule": Kind(
        lambda b, x, k: newton_root(1 + jnp.square(x @ b["w"])), numbers, SQUARE, False
    ),
    "linear algebra": Kind(whiten, numbers, SQUARE, True),
    "sorting": Kind(
        lambda b, x, k: jnp.sort(jax.nn.softplus(x @ b["w"]), -1), numbers, SQUARE, True
    ),
    "embedding of ids": Kind(
        lambda b, ids, k: jax.nn.silu(jnp.mean(b["w"][ids], 1)),
        lambda key: jax.random.randint(key, (4, 5), 0, 7),
        {"w": (7, FEATURES)},
        True,
    ),
    "LSTM with lengths": Kind(
        lstm, sequences, {"w": (2 * FEATURES, 4 * FEATURES)}, True
    ),
    "attention with dropout": Kind(
        attention,
        lambda key: jax.random.normal(key, (4, 3, FEATURES)),
        {"w": (FEATURES, 3 * FEATURES)},
        True,
    ),
    "tied weights": Kind(tied, numbers, SQUARE, True),
}


def model_of(kind: Kind) -> jm.Model:
    def init(key, inputs):
        keys = jax.random.split(key, len(kind.body) + 1)
        draw = lambda key, shape: 0.5 * jax.random.normal(key, shape)
        shapes = kind.body.items()
        body = {n: draw(k, s) for (n, s), k in zip(shapes, keys, strict=False)}
        return {"body": body, "head": draw(keys[-1], (FEATURES, WAYS))}

    def apply(params, inputs, *, key=None, train=False):
        features = kind.features(params["body"], inputs, key if train else None)
        return features @ params["head"]

    return jm.Model(init, apply)


def task_of(kind: Kind, key: jax.Array) -> jm.Task:
    """Four support and four query examples of two classes."""
    labels = jnp.eye(WAYS)[jnp.array([0, 1, 1, 0])]
    support_key, query_key = jax.random.split(key)
    sets = (kind.inputs(k) for k in (support_key, query_key))
    return jm.Task(*(jm.Examples(x, labels) for x in sets))


# The programs by hand: nothing but `jax.grad` and a Python loop.


def cross_entropy(logits, targets):
    return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(logits), -1))


class Hand(NamedTuple):
    """An inner loop: where it starts, what the model is given, and the update."""

    start: Callable[..., Any]  # (meta, embed) -> variables
    params: Callable[..., Any]  # (meta, variables, k) -> what `predict` takes
    move: Callable[..., Any]  # (meta, variables, grads, k) -> variables
    predict: Callable[..., jax.Array]  # (apply, params, inputs, key) -> logits


def plain(apply, params, inputs, key):
    return apply(params, inputs, key=key, train=True)


def descend(meta, variables, grads, k):
    return jax.tree.map(lambda v, g: v - RATE * g, variables, grads)


def _part(name):
    other = {"head": "body", "body": "head"}[name]
    return Hand(
        lambda meta, embed: meta[name],
        lambda meta, variables, k: {name: variables, other: meta[other]},
        descend,
        plain,
    )


def _prototypes(meta, embed):
    features, targets = embed(meta)
    means = (targets.T @ features) / jnp.sum(targets, 0)[:, None]
    return meta, 2 * means.T, -jnp.sum(jnp.square(means), -1)


def _curved(meta, variables, grads, k):
    tx = jm.optimizers.curvature_sgd(RATE).transform(meta.theta)
    updates, _ = tx.update(grads, tx.init(variables), variables)
    return optax.apply_updates(variables, updates)


HANDS = {
    "maml": Hand(lambda meta, embed: meta, lambda meta, v, k: v, descend, plain),
    "meta_sgd": Hand(
        lambda meta, embed: meta.params,
        lambda meta, v, k: v,
        lambda meta, v, g, k: jax.tree.map(lambda v, g, r: v - r * g, v, g, meta.theta),
        plain,
    ),
    "meta_curvature": Hand(
        lambda meta, embed: meta.params, lambda meta, v, k: v, _curved, plain
    ),
    "maml_plus_plus": Hand(
        lambda meta, embed: meta.params,
        lambda meta, v, k: v,
        lambda meta, v, g, k: jax.tree.map(
            lambda v, g, r: v - r[k] * g, v, g, meta.rates
        ),
        plain,
    ),
    "anil": _part("head"),
    "boil": _part("body"),
    "cavia": Hand(
        lambda meta, embed: jnp.zeros(WAYS),
        lambda meta, v, k: (meta, v),
        descend,
        lambda apply, params, inputs, key: (
            plain(apply, params[0], inputs, key) * jnp.exp(params[1])[None]
        ),
    ),
    "proto_maml": Hand(
        _prototypes,
        lambda meta, v, k: v,
        descend,
        lambda apply, params, inputs, key: (
            plain(apply, params[0], inputs, key) @ params[1] + params[2][None]
        ),
    ),
}


def by_hand(hand: Hand, apply, num_steps: int, key, meta, task):
    """The meta-gradient; keys are split as the learners split them."""
    inner_key, query_key = jax.random.split(key)
    prepare_key, inner_key = jax.random.split(inner_key)
    keys = jax.random.split(inner_key, num_steps)

    def loss(meta, variables, k, key, examples):
        params = hand.params(meta, variables, k)
        logits = hand.predict(apply, params, examples.inputs, key)
        return cross_entropy(logits, examples.targets)

    def query_loss(meta):
        support = task.support
        embed = lambda meta: (
            plain(apply, meta, support.inputs, prepare_key),
            support.targets,
        )
        variables = hand.start(meta, embed)
        for k, step_key in enumerate(keys):
            grads = jax.grad(loss, argnums=1)(meta, variables, k, step_key, support)
            variables = hand.move(meta, variables, grads, k)
        return loss(meta, variables, num_steps, query_key, task.query)

    return jax.grad(query_loss)(meta)


def implicit_by_hand(apply, num_steps: int, key, meta, task, regularization: float):
    """(I + J^T / lambda)^-1 times the query's gradient, J written out."""
    inner_key, query_key, support_key = jax.random.split(key, 3)
    _, inner_key = jax.random.split(inner_key)
    start, unravel = ravel_pytree(meta)

    def loss(flat, key, examples):
        logits = plain(apply, unravel(flat), examples.inputs, key)
        return cross_entropy(logits, examples.targets)

    phi = start
    for step_key in jax.random.split(inner_key, num_steps):
        pull = regularization * (phi - start)
        phi = phi - RATE * (jax.grad(loss)(phi, step_key, task.support) + pull)
    target = jax.grad(loss)(phi, query_key, task.query)
    jacobian = jax.jacrev(jax.grad(loss))(phi, support_key, task.support)
    system = jnp.eye(phi.size) + jacobian.T / regularization
    return unravel(jnp.linalg.solve(system, target))


def learner_of(name: str, model: jm.Model, num_steps: int, **options):
    """The learner that `HANDS[name]`, or `implicit_by_hand`, is."""
    loss, steps = jm.losses.cross_entropy, {"inner_steps": num_steps} | options
    tx = {"inner_tx": optax.sgd(RATE)} | steps
    if name == "imaml":
        exact = {"cg_steps": 40, "cg_tolerance": 1e-13, "regularization": 5.0}
        return jm.imaml(model, loss, **tx, **exact)
    if name == "cavia":
        tx |= {"num_context": WAYS, "context": "model"}
        return jm.cavia(with_context(model), loss, **tx)
    if name == "proto_maml":
        return jm.proto_maml(model, **tx)
    if name in ("meta_sgd", "meta_curvature", "maml_plus_plus"):
        return getattr(jm, name)(model, loss, learning_rate=RATE, **steps)
    return getattr(jm, name)(model, loss, **tx)


def with_context(model: jm.Model) -> jm.Model:
    """The model, its logits scaled by a context."""

    def apply(params, inputs, *, key=None, train=False):
        inputs, context = inputs
        logits = model.apply(params, inputs, key=key, train=train)
        return logits * jnp.exp(context)[None]

    return jm.Model(lambda key, inputs: model.init(key, inputs[0]), apply)


# Back-propagation through a learned rule.


def tanh_rule() -> jm.LearnedOptimizer:
    """A smooth rule of two numbers."""

    def transform(theta):
        def update(updates, state, params=None, **extra):
            return jax.tree.map(
                lambda g: -theta[0] * jnp.tanh(theta[1] * g), updates
            ), state

        return optax.GradientTransformationExtraArgs(lambda _: (), update)

    return jm.LearnedOptimizer(
        lambda key, params=None: jnp.array([0.3, 2.0]), transform
    )


def problem_of(kind: Kind) -> jm.OptimizationProblem:
    model = model_of(kind)

    def loss(params, task, key):
        logits = plain(model.apply, params, task.support.inputs, key)
        return cross_entropy(logits, task.support.targets)

    return jm.OptimizationProblem(
        lambda key: task_of(kind, key),
        lambda key, task: model.init(key, task.support.inputs),
        loss,
    )


def bptt_by_hand(problem, num_steps: int, key, theta, params, instance):
    """The gradient of the summed losses after each update."""
    keys = jax.random.split(key, num_steps + 1)

    def total(theta):
        moved, losses = params, 0.0
        for k in range(num_steps):
            grads = jax.grad(problem.loss)(moved, instance, keys[k])
            moved = jax.tree.map(
                lambda p, g: p - theta[0] * jnp.tanh(theta[1] * g), moved, grads
            )
            losses += problem.loss(moved, instance, keys[k + 1])
        return losses

    return jax.grad(total)(theta)


# Comparing them.


def relative_error(found, expected) -> float:
    difference = optax.tree.norm(optax.tree.sub(found, expected))
    return float(difference / optax.tree.norm(expected))


def error_of_learner(name: str, kind: Kind, num_steps: int, **options) -> float:
    """Of the meta-gradient, relative to that by hand."""
    model, key = model_of(kind), jax.random.key(num_steps)
    task = task_of(kind, jax.random.key(7))
    learner = learner_of(name, model, num_steps, **options)
    meta = learner.init(jax.random.key(3), task)
    found, _ = jax.jit(learner.meta_grad)(key, meta, task)
    if name == "imaml":
        hand = lambda *args: implicit_by_hand(model.apply, num_steps, *args, 5.0)
    else:
        hand = lambda *args: by_hand(HANDS[name], model.apply, num_steps, *args)
    return relative_error(found, jax.jit(hand)(key, meta, task))


def error_of_estimator(name: str, kind: Kind, num_steps: int, **options) -> float:
    """The same for a meta-gradient through a learned rule's updates."""
    problem, key = problem_of(kind), jax.random.key(num_steps)
    sizes = {"horizon": num_steps, "num_problems": 1} | options
    if name == "truncated_bptt":
        sizes["unroll"] = num_steps
    estimator = getattr(jm.estimators, name)(tanh_rule(), problem, **sizes)
    theta, carry = estimator.init(jax.random.key(3))
    found, _, _ = jax.jit(estimator.estimate)(key, theta, carry)
    start_key, run_key = jax.random.split(jax.random.split(key, 1)[0])
    if carry is None:
        sample_key, init_key, _ = jax.random.split(start_key, 3)
        instance = problem.sample(sample_key)
        params = problem.init(init_key, instance)
    else:
        params, instance = jax.tree.map(lambda x: x[0], (carry.params, carry.instance))
    hand = lambda *args: bptt_by_hand(problem, num_steps, *args)
    return relative_error(found, jax.jit(hand)(run_key, theta, params, instance))


def mode_of(kind: Kind) -> str:
    """How "auto" takes the Hessian-vector products of this kind of model."""
    model, task = model_of(kind), task_of(kind, jax.random.key(7))
    params = model.init(jax.random.key(3), task.support.inputs)

    def loss(params, key, examples):
        logits = plain(model.apply, params, examples.inputs, key)
        return jm.losses.cross_entropy(logits, examples.targets)

    is_hessian = _unroll.is_gradient_field(
        loss, params, jax.random.key(0), task.support
    )
    return "forward-over-reverse" if is_hessian else "reverse-over-reverse"


LEARNERS = (*HANDS, "imaml")
ESTIMATORS = ("bptt", "truncated_bptt")


def main() -> None:
    rows = []
    with jax.enable_x64(True):
        for kind_name, kind in KINDS.items():
            errors = {}
            for num_steps in (1, 3):
                for name in LEARNERS:
                    error = error_of_learner(name, kind, num_steps)
                    errors[f"{name}, K = {num_steps}"] = error
                for name in ESTIMATORS:
                    error = error_of_estimator(name, kind, num_steps)
                    errors[f"{name}, K = {num_steps}"] = error
            jax.clear_caches()
            worst = max(errors, key=errors.__getitem__)
            rows.append({"model": kind_name, "hvp": mode_of(kind), "errors": errors})
            print(
                f"{kind_name:<30} {rows[-1]['hvp']:<22} at most {errors[worst]:.1e} "
                f"({worst})",
                flush=True,
            )
    path = pathlib.Path(__file__).parent / "results" / "exactness.json"
    path.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
