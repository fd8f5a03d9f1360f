"""What users bring, by kind: it works as it should, or an error names the fix."""

import functools
import itertools

import chex
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeta as jm
from tests._metric_learners import classification_task, vector_task

SGD = {"inner_tx": optax.sgd(0.1), "inner_steps": 2}
RATE = {"learning_rate": 0.1, "inner_steps": 2}
CROSS_ENTROPY = jm.losses.cross_entropy
LEARNERS = {  # name: the learner of a model and options, on tasks of classes
    "maml": functools.partial(jm.maml, **SGD),
    "reptile": functools.partial(jm.reptile, **SGD),
    "reptile, kept state": functools.partial(jm.reptile, keep_inner_state=True, **SGD),
    "anil": functools.partial(jm.anil, is_adapted=lambda path: "out" in path, **SGD),
    "boil": functools.partial(jm.boil, is_adapted=lambda path: "out" in path, **SGD),
    "cavia": functools.partial(jm.cavia, num_context=2, context="model", **SGD),
    "imaml": functools.partial(jm.imaml, **SGD),
    "meta_sgd": functools.partial(jm.meta_sgd, **RATE),
    "meta_curvature": functools.partial(jm.meta_curvature, **RATE),
    "maml_plus_plus": functools.partial(jm.maml_plus_plus, **RATE),
    "meta_lstm": functools.partial(jm.meta_lstm, inner_steps=2, hidden_size=2),
    "proto_maml": functools.partial(jm.proto_maml, **SGD),
    "prototypical": jm.prototypical,
    "matching": jm.matching,
    "siamese": jm.siamese,
    "relation": jm.relation,
    "ridge": jm.ridge,
    "subspace": jm.subspace,
    "svm": jm.svm,
    "feat": jm.feat,
}
TAKE_A_LOSS = [name for name in LEARNERS if name != "siamese"]
EMBED = list(LEARNERS)[list(LEARNERS).index("proto_maml") :]  # They bring a loss.


def _learner(name, model, **options):
    loss = {} if name in EMBED else {"loss": CROSS_ENTROPY}
    return LEARNERS[name](model, **(loss | options))


def _model(leaf=np.asarray, unpack=lambda x: x):
    """A small network whose leaves are made by `leaf`, of what `unpack` finds."""

    def init(key, inputs):
        size = np.shape(unpack(inputs))[-1]
        draw = np.random.default_rng(0).normal
        weights = {"w": draw(size=(size, 4)), "out": draw(size=(4, 3)), "scale": 0.5}
        return jax.tree.map(leaf, weights)

    def apply(params, inputs):
        hidden = jnp.tanh(unpack(inputs) @ params["w"]) * params["scale"]
        return hidden @ params["out"]

    return jm.Model(init, apply)


def _of_pair(x):
    """The inputs of a model that `cavia` also gives its context, beside them."""
    if not isinstance(x, tuple):
        return x
    inputs, context = x
    return inputs + jnp.sum(context)


def _everything(learner, key, params, task):
    """All that a learner does, so that one program has it all."""
    grads, info = learner.meta_grad(key, params, task)
    task_params, _ = learner.adapt(key, params, task.support)
    outputs = learner.predict(task_params, task.query.inputs)
    return grads, info, learner.evaluate(key, params, task), outputs


def _trace(learner, key, params, task):
    everything = functools.partial(_everything, learner)
    return jax.eval_shape(everything, key, params, task)


# Parameters.

LEAVES = {
    "python": lambda x: x if np.ndim(x) == 0 else np.asarray(x),
    "numpy, float64": np.asarray,
    "numpy scalars": lambda x: np.float64(x) if np.ndim(x) == 0 else x,
    "jax, weak": jnp.asarray,
}


@pytest.mark.parametrize("name", LEARNERS)
def test_parameters_may_be_numbers_of_python_and_numpy(name, key):
    """They give the very program that JAX's own arrays give."""
    task = vector_task(key)
    expected = None
    for leaf in (lambda x: jnp.asarray(x, jnp.float32), *LEAVES.values()):
        learner = _learner(name, _model(leaf, _of_pair))
        params = learner.init(key, task)
        assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(params))
        assert not any(x.weak_type for x in jax.tree.leaves(params))
        shapes = jax.tree.map(jnp.copy, params), _trace(learner, key, params, task)
        expected = shapes if expected is None else expected
        chex.assert_trees_all_equal(shapes[0], expected[0])
        chex.assert_trees_all_equal_shapes_and_dtypes(shapes[1], expected[1])


@pytest.mark.parametrize("name", ["maml", "prototypical"])
@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (lambda x: 1, r"\['scale'\].*'int32'"),
        (lambda x: True, r"\['scale'\].*'bool'"),
        (lambda x: "a", r"\['scale'\].*'str'"),
        (lambda x: jnp.tanh, r"\['scale'\].*from_equinox"),
        (lambda x: jax.random.key(0), r"\['scale'\].*'key<fry>'"),
    ],
)
def test_parameters_that_cannot_be_adapted_are_named(name, leaf, message, key):
    task = vector_task(key)
    with pytest.raises(ValueError, match=f"floating point to be adapted.*{message}"):
        _learner(name, _model(leaf)).init(key, task)
    learner, good = _learner(name, _model()), _model().init(key, task.support.inputs)
    for function in (learner.meta_grad, learner.evaluate):
        with pytest.raises(ValueError, match=message):
            function(key, good | {"scale": leaf(0)}, task)


def test_a_forgotten_return_is_named(key):
    model = jm.Model(lambda key, x: None, lambda params, x: x)
    with pytest.raises(ValueError, match="must return parameters, got None"):
        _learner("maml", model).init(key, vector_task(key))


# Losses and metrics.

NO_LOSSES = {
    "a pair": (
        lambda v: (v, v),
        r"a tuple of \{0: float32\[\].*only the scalar.*`metrics`",
    ),
    "a dict": (lambda v: {"loss": v}, r"a dict of \{'loss': float32\[\]\}.*only"),
    "nothing": (lambda v: None, "got None"),
    "a float": (lambda v: 0.5, r"got 0\.5.*no gradient"),
    "an int": (lambda v: 1, "got 1"),
    "a bool": (lambda v: True, "got True"),
    "a scalar of NumPy": (lambda v: np.float32(1), r"np\.float32\(1\.0\).*no gradient"),
    "an integer": (lambda v: v.astype(int), "dtype int32"),
    "a vector": (lambda v: v[None], r"shape \(1,\)"),
}


@pytest.mark.parametrize("kind", NO_LOSSES)
def test_a_loss_that_is_no_scalar_is_named_by_every_learner(kind, key):
    change, message = NO_LOSSES[kind]
    loss = lambda outputs, targets: change(CROSS_ENTROPY(outputs, targets))
    task = vector_task(key)
    for name in TAKE_A_LOSS:
        learner = _learner(name, _model(unpack=_of_pair), loss=loss)
        params = learner.init(key, task)
        for function in (learner.meta_grad, learner.evaluate):
            with pytest.raises(ValueError, match=f"`loss` must return.*{message}"):
                jax.eval_shape(function, key, params, task)


NO_METRICS = {
    "a pair": (lambda v: (v, v), r"a tuple of \{0: float32\[6\]"),
    "a dict": (lambda v: {"a": v}, r"a dict of \{'a'"),
    "nothing": (lambda v: None, "got None"),
    "a vector": (lambda v: v, r"float32\[6\]\. Take the mean"),
    "text": (lambda v: "good", "got 'good'"),
}


def test_metrics_that_are_no_scalars_are_named_by_every_learner(key):
    task, kinds = vector_task(key), itertools.cycle(NO_METRICS.values())
    for name, (change, message) in zip(LEARNERS, kinds, strict=False):
        metric = lambda outputs, targets: change(jnp.max(outputs, -1))
        model = _model(unpack=_of_pair)
        learner = _learner(name, model, metrics={"mine": metric})
        params = learner.init(key, task)
        for function in (learner.meta_grad, learner.evaluate):
            with pytest.raises(ValueError, match=f"metric 'mine'.*{message}"):
                jax.eval_shape(function, key, params, task)


def test_metrics_may_be_any_scalar(key):
    task = vector_task(key)
    values = {"float": 0.5, "int": 2, "bool": True, "numpy": np.float64(0.25)}
    metrics = {name: lambda o, t, value=v: value for name, v in values.items()}
    for name in ("maml", "prototypical", "siamese"):
        learner = _learner(name, _model(), metrics=metrics)
        info = learner.evaluate(key, learner.init(key, task), task)
        for metric, value in values.items():
            assert (info.metrics[metric] == value).all()


# Problems for optimizers.


def _estimators(lopt, problem):
    make = {"num_problems": 2}
    pieces = {"unroll": 2, "horizon": 4, "num_problems": 2}
    return {
        "bptt": jm.estimators.bptt(lopt, problem, horizon=2, **make),
        "truncated_bptt": jm.estimators.truncated_bptt(lopt, problem, **pieces),
        "es": jm.estimators.es(lopt, problem, horizon=2, **make),
        "pes": jm.estimators.pes(lopt, problem, **pieces),
        "imitation": jm.estimators.imitation(lopt, problem, optax.sgd(0.1), **pieces),
    }


def _problem(start=lambda: jnp.ones(()), change=lambda v: v):
    return jm.OptimizationProblem(
        sample=lambda key: jax.random.normal(key, ()),
        init=lambda key, instance: {"w": start()},
        loss=lambda params, instance, key: change((params["w"] - instance) ** 2),
    )


LOPT = jm.optimizers.learned_sgd(0.1)


@pytest.mark.parametrize("kind", NO_LOSSES)
def test_a_loss_that_is_no_scalar_is_named_by_every_estimator(kind, key):
    change, message = NO_LOSSES[kind]
    problem, theta = _problem(change=change), LOPT.init(key)
    message = rf"`problem\.loss` must return.*{message}"
    for estimator in _estimators(LOPT, problem).values():
        theta, carry = estimator.init(key)
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(estimator.estimate, key, theta, carry)
    options = {"num_problems": 1, "key": key}
    with pytest.raises(ValueError, match=message):
        jm.training.evaluate_optimizer(LOPT, theta, problem, num_steps=2, **options)
    with pytest.raises(ValueError, match=message):
        jm.training.update_responses(
            LOPT, theta, problem, gradients=[1.0], steps=[0], **options
        )


@pytest.mark.parametrize("start", [1.0, np.float64(1.0), np.ones(()), "weak"], ids=repr)
def test_runs_may_start_from_numbers_of_python_and_numpy(start, key):
    make = lambda: jnp.asarray(1.0) if isinstance(start, str) else start
    own, jax_own = (
        _estimators(LOPT, problem) for problem in (_problem(make), _problem())
    )
    for name, estimator in own.items():
        theta, carry = estimator.init(key)
        found = jax.eval_shape(estimator.estimate, key, theta, carry)
        expected = jax.eval_shape(jax_own[name].estimate, key, *jax_own[name].init(key))
        chex.assert_trees_all_equal_shapes_and_dtypes(found, expected)
        assert not any(x.weak_type for x in jax.tree.leaves(carry))
    scaled = jm.problems.random_scaling(_problem(make))
    jax.eval_shape(lambda key: scaled.init(key, scaled.sample(key)), key)


# Inputs.


@pytest.mark.parametrize("name", LEARNERS)
def test_inputs_may_be_dicts(name, key):
    """The results are those of the array inside."""
    inner = lambda x: x["x"] + 0 * x["ids"][:, None]

    def of_dict(x):
        return inner(x) if isinstance(x, dict) else _of_pair((inner(x[0]), x[1]))

    def as_dict(examples):
        ids = jnp.arange(len(examples.inputs))
        return examples._replace(inputs={"x": examples.inputs, "ids": ids})

    task = vector_task(key)
    plain = _learner(name, _model(unpack=_of_pair))
    learner = _learner(name, _model(unpack=of_dict))
    dicts = jm.Task(*map(as_dict, task))
    params = learner.init(key, dicts)
    chex.assert_trees_all_equal(params, plain.init(key, task))
    found, expected = (
        _trace(x, key, params, t) for x, t in ((learner, dicts), (plain, task))
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(found, expected)
    if name in ("maml", "cavia", "ridge"):
        (found, _), (expected, _) = (
            jax.jit(x.meta_grad)(key, params, t)
            for x, t in ((learner, dicts), (plain, task))
        )
        chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-5)


def _dict_inputs(examples):
    return examples._replace(inputs={"x": examples.inputs})


def _flat_model():
    unpack = lambda x: x["x"].reshape(len(x["x"]), -1)
    return _model(unpack=unpack)


BAD_TASKS = {
    "a context beside a dict": (
        lambda: jm.cavia(_model(), CROSS_ENTROPY, num_context=2, **SGD),
        _dict_inputs,
        r'inputs in one array, got dict\. Use context="model"',
    ),
    "a mirrored dict": (
        lambda: jm.subspace(_flat_model(), flip=True),
        _dict_inputs,
        r"`flip` requires images.*got shape \(6, 16\)",
    ),
    "lists": (
        lambda: jm.maml(_model(), CROSS_ENTROPY, **SGD),
        lambda e: e._replace(targets=e.targets.tolist()),
        r"must hold arrays.*\['float'\].*numpy\.asarray",
    ),
    "a dict of targets": (
        lambda: jm.ridge(_model()),
        lambda e: e._replace(targets={"y": e.targets}),
        r"`support\.targets` must be one array.*got dict",
    ),
}


@pytest.mark.parametrize("name", BAD_TASKS)
def test_tasks_of_another_kind_are_named(name, key):
    make, change, message = BAD_TASKS[name]
    flat = lambda e: e._replace(inputs=e.inputs.reshape(len(e.inputs), -1))
    task = jm.Task(*(change(flat(e)) for e in classification_task(key)))
    with pytest.raises(ValueError, match=message):
        learner = make()
        params = learner.init(key, task)
        learner.adapt(key, params, task.support)


# Token ids stay ids.


def _embedding_model():
    def init(key, tokens):
        keys = jax.random.split(key)
        table = jax.random.normal(keys[0], (300, 3))
        return {"table": table, "out": jax.random.normal(keys[1], (3, 300))}

    return jm.Model(init, lambda p, tokens: jnp.tanh(p["table"][tokens]) @ p["out"])


TOKEN_MODELS = {
    "embedding": _embedding_model,
    "transformer": lambda: jm.models.Transformer(300, 6, width=2, num_heads=1),
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("embedding", "int32"), ("embedding", "uint8"), ("transformer", "uint8")],
)
def test_the_meta_gradient_of_token_ids_is_that_of_jax_alone(name, dtype, key, x64):
    model = TOKEN_MODELS[name]()
    tokens = jax.random.randint(key, (2, 3, 6), 0, 256).astype(dtype)
    examples = [jm.Examples(x[:, :-1], x[:, 1:].astype(int)) for x in tokens]
    task = jm.Task(*examples)
    params = jax.jit(model.init)(key, task.support.inputs)

    def loss(params, examples):
        log_probs = jax.nn.log_softmax(model.apply(params, examples.inputs))
        return -jnp.mean(
            jnp.take_along_axis(log_probs, examples.targets[..., None], -1)
        )

    @jax.jit
    @jax.grad
    def by_hand(params):
        grads = jax.grad(loss)(params, task.support)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
        return loss(params, task.query)

    learner = jm.maml(model, CROSS_ENTROPY, inner_tx=optax.sgd(0.1), inner_steps=1)
    grads, _ = jax.jit(learner.meta_grad)(key, params, task)
    scale = optax.tree.norm(grads)
    chex.assert_trees_all_close(grads, by_hand(params), rtol=1e-8, atol=1e-10 * scale)


# Haiku, with a key.


def _noisy(x, train):
    """A network with dropout, as users of haiku write it."""
    x = hk.Linear(4)(x)
    return hk.Linear(3)(hk.dropout(hk.next_rng_key(), 0.5, x) if train else x)


def test_haiku_gets_a_key_and_the_kind_of_pass(key):
    """The meta-gradient is that of the same functions as a `Model`."""
    task, net = vector_task(key), hk.transform(_noisy)
    model = jm.Model(
        lambda key, x: net.init(key, x, train=True),
        lambda p, x, key, train: net.apply(p, key, x, train=train),
    )
    learner, expected = (jm.maml(m, CROSS_ENTROPY, **SGD) for m in (net, model))
    params = learner.init(key, task)
    chex.assert_trees_all_equal(params, expected.init(key, task))
    meta_grad = jax.jit(learner.meta_grad)
    found = meta_grad(key, params, task)
    chex.assert_trees_all_equal(found, jax.jit(expected.meta_grad)(key, params, task))
    other = meta_grad(jax.random.key(5), params, task)
    assert optax.tree.norm(optax.tree.sub(found[0], other[0])) > 1e-3
    inputs = task.query.inputs
    quiet = net.apply(params, None, inputs, train=False)
    chex.assert_trees_all_equal(learner.predict(params, inputs), quiet)


HAIKU = {
    "state": (
        lambda: hk.transform_with_state(lambda x: hk.Linear(3)(x)),
        "stateless, got TransformedWithState",
    ),
    "state, no key": (
        lambda: hk.without_apply_rng(hk.transform_with_state(lambda x: x)),
        "stateless, got TransformedWithState",
    ),
    "noise in predictions": (
        lambda: hk.transform(lambda x: _noisy(x, True)),
        "draws random numbers in predictions.*`train` argument",
    ),
}


@pytest.mark.parametrize("name", HAIKU)
def test_haiku_that_cannot_be_adapted_is_named(name, key):
    make, message = HAIKU[name]
    task = vector_task(key)
    with pytest.raises(ValueError, match=message):
        learner = _learner("maml", make())
        learner.evaluate(key, learner.init(key, task), task)


def test_plain_functions_may_take_the_key_second(key):
    init = _model().init
    model = jm.Model(init, lambda params, key, x: _model().apply(params, x))
    task = vector_task(key)
    found, expected = (
        learner.meta_grad(key, learner.init(key, task), task)
        for learner in (_learner("maml", m) for m in (model, _model()))
    )
    chex.assert_trees_all_equal(found, expected)
