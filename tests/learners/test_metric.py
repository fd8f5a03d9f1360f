"""What all metric learners must do: right gradients, any ways and shots, no NaN."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmeta as jm
from jaxmeta import learners
from tests._metric_learners import (
    METRIC_LEARNERS,
    classification_task,
    finite_difference_error,
    identity_embedding,
    logits_of,
    tanh_embedding,
    vector_task,
)

# Terms that only meta-training adds are left out: evaluation does not know them.
SMOOTH = {
    "prototypical": lambda f: learners.prototypical(f),
    "prototypical, cosine": lambda f: learners.prototypical(f, distance="cosine"),
    "prototypical, support model": lambda f: learners.prototypical(
        f, support_model=tanh_embedding(3), normalize_prototypes=True
    ),
    "matching": lambda f: learners.matching(f),
    "matching, l2": lambda f: learners.matching(f, similarity="l2"),
    "matching, full context": lambda f: learners.matching(
        f, full_context=True, context_steps=3
    ),
    "siamese": lambda f: learners.siamese(f),
    "relation": lambda f: learners.relation(f),
    "relation, support model": lambda f: learners.relation(
        f, support_model=tanh_embedding(3)
    ),
    "ridge": lambda f: learners.ridge(f),
    "subspace": lambda f: learners.subspace(f, discriminative=0.0),
    # As many features as examples: beyond that rounding grows larger than 1e-6.
    "svm": lambda f: learners.svm(tanh_embedding(8, size=8)),
    "feat": lambda f: learners.feat(f, num_heads=2, temperature=4.0, contrastive=0.0),
}
OTHERS = {name: make for name, make in METRIC_LEARNERS.items() if name != "proto_maml"}


@pytest.mark.parametrize("name", SMOOTH)
def test_central_finite_differences(name, key):
    with jax.enable_x64(True):
        error = finite_difference_error(SMOOTH[name](tanh_embedding()), key)
    assert error < 1e-6, error


@pytest.mark.parametrize("name", OTHERS)
def test_meta_parameters_serve_any_number_of_ways_and_shots(name, key):
    learner = OTHERS[name]()
    meta_params = learner.init(key, classification_task(key, ways=3, shots=2))
    larger = classification_task(key, ways=4, shots=3)
    assert logits_of(learner, larger, meta_params).shape == (8, 4)
    like = jax.eval_shape(learner.init, key, larger)
    chex.assert_trees_all_equal_shapes_and_dtypes(like, meta_params)


@pytest.mark.parametrize("name", OTHERS)
def test_a_class_without_support_examples_is_never_predicted(name, key):
    learner, task = OTHERS[name](), classification_task(key)
    pad = lambda examples: examples._replace(
        targets=jnp.pad(examples.targets, ((0, 0), (0, 1)))
    )
    wider = jm.Task(*map(pad, task))
    meta_params = learner.init(key, task)
    logits = logits_of(learner, wider, meta_params)
    assert np.all(np.argmax(logits, -1) < 3)
    # The other classes do not notice.
    expected = logits_of(learner, task, meta_params)
    np.testing.assert_allclose(logits[:, :3], expected, rtol=1e-4, atol=1e-5)
    grads, info = jax.jit(learner.meta_grad)(key, meta_params, wider)
    chex.assert_tree_all_finite((grads, info))


DEGENERATE = {
    "zeros": jnp.zeros_like,
    "equal": jnp.ones_like,
    "duplicates": lambda x: jnp.concatenate([x[:1], x[:1], x[2:]]),
}


@pytest.mark.parametrize("name", [*SMOOTH, "subspace, terms", "feat, terms"])
def test_degenerate_embeddings_have_finite_gradients(name, key):
    factory = {
        "subspace, terms": lambda f: learners.subspace(f),
        "feat, terms": lambda f: learners.feat(f),
    } | SMOOTH
    learner, task = factory[name](tanh_embedding()), vector_task(key)
    meta_params = learner.init(key, task)
    meta_grad = jax.jit(learner.meta_grad)
    for what, change in DEGENERATE.items():
        changed = jm.Task(*(e._replace(inputs=change(e.inputs)) for e in task))
        grads, info = meta_grad(key, meta_params, changed)
        for leaf in jax.tree.leaves((grads, info)):
            assert np.all(np.isfinite(leaf)), (what, leaf)
            assert np.all(np.abs(leaf) < 1e4), (what, leaf)


def test_each_set_is_normalised_by_itself_and_predictions_by_the_support(key):
    task = classification_task(key)
    learner, inductive = (
        learners.prototypical(jm.models.MLP([5, 4], norm="batch", statistics=where))
        for where in ("batch", "support")
    )
    meta_params = learner.init(key, task)
    alone = lambda learner, i: logits_of(
        learner,
        task._replace(query=jax.tree.map(lambda x: x[i : i + 2], task.query)),
        meta_params,
    )
    together = logits_of(inductive, task, meta_params)
    np.testing.assert_allclose(alone(inductive, 2), together[2:4], rtol=1e-4)
    assert not np.allclose(
        alone(learner, 2), logits_of(learner, task, meta_params)[2:4]
    )
    # Meta-training does not depend on what predictions use.
    mine, other = (x.meta_grad(key, meta_params, task) for x in (learner, inductive))
    chex.assert_trees_all_close(mine, other)


def test_models_are_given_their_own_keys_in_training_alone(key):
    seen = []

    def apply(params, inputs, *, key=None, train=False):
        seen.append((None if key is None else jax.random.key_data(key).tolist(), train))
        return params * inputs

    learner = learners.prototypical(jm.Model(lambda key, x: jnp.ones(()), apply))
    task = vector_task(key)
    meta_params = learner.init(key, task)
    learner.evaluate(key, meta_params, task)
    assert not any(train for _, train in seen)
    seen.clear()
    learner.meta_grad(key, meta_params, task)
    (support_key, support_train), (query_key, query_train) = seen
    assert support_train and query_train
    assert support_key is not None and support_key != query_key


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("prototypical", {"distance": "l1"}), "`distance` must be one of 'euclidean'"),
        (("prototypical", {"temperature": 0.0}), "`temperature` must be positive"),
        (("matching", {"similarity": "dot"}), "`similarity` must be one of 'cosine'"),
        (("matching", {"temperature": -1.0}), "`temperature` must be positive"),
        (("matching", {"context_steps": 0}), "`context_steps` must be an int >= 1"),
        (("ridge", {"regularization": 0.0}), "`regularization` must be positive"),
        (("ridge", {"scale": -1.0}), "`scale` must be positive"),
        (("subspace", {"scale": 0.0}), "`scale` must be positive"),
        (("subspace", {"discriminative": -1.0}), "`discriminative` must be at least 0"),
        (("svm", {"C": 0.0}), "`C` must be positive"),
        (("svm", {"scale": 0.0}), "`scale` must be positive"),
        (("svm", {"solver_steps": 0}), "`solver_steps` must be an int >= 1"),
        (("feat", {"num_heads": 0}), "`num_heads` must be an int >= 1"),
        (("feat", {"temperature": 0.0}), "`temperature` must be positive"),
        (("feat", {"contrastive": -1.0}), "`contrastive` must be at least 0"),
        (
            ("feat", {"contrastive_temperature": 0.0}),
            "`contrastive_temperature` must be positive",
        ),
        (("siamese", {"metrics": {"loss": None}}), r"`metrics` may not be called"),
    ],
)
def test_bad_options_are_named(options, message):
    name, options = options
    with pytest.raises(ValueError, match=message):
        getattr(learners, name)(tanh_embedding(), **options)


@pytest.mark.parametrize("name", ["prototypical", "siamese", "relation"])
def test_targets_that_are_not_one_hot_are_named(name, key):
    learner, task = METRIC_LEARNERS[name](), classification_task(key)
    meta_params = learner.init(key, task)
    labels = lambda examples: examples._replace(
        targets=jnp.argmax(examples.targets, -1)
    )
    with pytest.raises(ValueError, match=r"`support.targets` must be one-hot.*\(6,\)"):
        learner.adapt(key, meta_params, labels(task.support))
    wrong = task._replace(query=labels(task.query))
    for function in (learner.meta_grad, learner.evaluate):
        with pytest.raises(ValueError, match=r"`query.targets` must be one-hot"):
            function(key, meta_params, wrong)
    with pytest.raises(ValueError, match=r"`query.targets` must be one-hot"):
        learner.init(key, wrong)


def test_other_classes_in_the_query_are_named(key):
    learner, task = METRIC_LEARNERS["prototypical"](), vector_task(key)
    wrong = task._replace(query=vector_task(key, ways=4).query)
    with pytest.raises(ValueError, match="targets with 3 and 4 ways"):
        learner.meta_grad(key, learner.init(key, task), wrong)


def test_a_loss_that_is_no_scalar_is_named(key):
    task = vector_task(key)
    learner = learners.prototypical(identity_embedding(), loss=lambda out, y: out - y)
    with pytest.raises(ValueError, match=r"`loss` must return a float scalar"):
        learner.meta_grad(key, learner.init(key, task), task)


def test_a_model_that_loses_the_examples_is_named(key):
    model = jm.Model(lambda key, x: jnp.ones(()), lambda w, x: w * x.mean(0))
    learner, task = learners.prototypical(model), vector_task(key)
    with pytest.raises(ValueError, match=r"must map 6 examples .*got \(5,\)"):
        learner.adapt(key, jnp.ones(()), task.support)
