"""Back-propagation through runs, against a plain loop and finite differences."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeta as jm

PROBLEM = jm.problems.quadratics(dim=3)


def _lstm():
    return jm.optimizers.lstm(
        4, preprocess=jm.optimizers.scaled_gradient(), output_scale=1.0
    )


def _bptt(lopt=None, **options):
    options = {"horizon": 6, "num_problems": 3} | options
    return _compiled(jm.estimators.bptt(lopt or _lstm(), PROBLEM, **options))


def _truncated(lopt=None, **options):
    options = {"unroll": 2, "horizon": 6, "num_problems": 3} | options
    return _compiled(jm.estimators.truncated_bptt(lopt or _lstm(), PROBLEM, **options))


def _compiled(estimator):
    """As one program: operation by operation takes longer to compile."""
    return estimator._replace(estimate=jax.jit(estimator.estimate))


def _plain_loss(key, theta, lopt, num_problems, horizon, second_order):
    """The meta-loss as a Python loop, on the problems that `bptt` draws."""

    def one(key):
        start_key, _ = jax.random.split(key)
        sample_key, init_key, _ = jax.random.split(start_key, 3)
        instance = PROBLEM.sample(sample_key)
        params = PROBLEM.init(init_key, instance)
        tx = lopt.transform(theta)
        state, total = tx.init(params), 0.0
        for _ in range(horizon):
            grads = jax.grad(PROBLEM.loss)(params, instance, None)
            if not second_order:
                grads = jax.lax.stop_gradient(grads)
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            total += PROBLEM.loss(params, instance, None)
        return total

    return jnp.mean(jax.vmap(one)(jax.random.split(key, num_problems)))


@pytest.mark.parametrize("num_problems", [1, 3])
@pytest.mark.parametrize("rematerialize", [True, False])
@pytest.mark.parametrize("second_order", [True, False])
def test_gradient_agrees_with_a_plain_loop(
    second_order, rematerialize, num_problems, key
):
    """One run alone goes without `vmap`."""
    with jax.enable_x64(True):
        lopt = _lstm()
        estimator = _bptt(
            second_order=second_order,
            rematerialize=rematerialize,
            num_problems=num_problems,
        )
        theta, carry = estimator.init(key)
        grads, _, info = estimator.estimate(key, theta, carry)
        assert info.loss.shape == (num_problems,)
        arguments = (key, theta, lopt, num_problems, 6, second_order)
        plain = jax.value_and_grad(_plain_loss, argnums=1)
        loss, expected = jax.jit(plain, static_argnums=range(2, 6))(*arguments)
        chex.assert_trees_all_close(grads, expected, rtol=1e-10)
        np.testing.assert_allclose(info.loss.mean() * 6, loss)


def test_gradient_agrees_with_finite_differences(key):
    with jax.enable_x64(True):
        estimator = _bptt()
        theta, carry = estimator.init(key)
        grads, _, _ = estimator.estimate(key, theta, carry)
        direction = optax.tree.random_like(key, theta)

        def loss(h):
            moved = optax.tree.add_scale(theta, h, direction)
            return 6 * estimator.estimate(key, moved, carry)[2].loss.mean()

        expected = (loss(1e-5) - loss(-1e-5)) / 2e-5
        np.testing.assert_allclose(
            optax.tree.vdot(grads, direction), expected, rtol=1e-7
        )


def test_first_order_is_another_gradient(key):
    with jax.enable_x64(True):
        theta, carry = _bptt().init(key)
        exact, _, _ = _bptt().estimate(key, theta, carry)
        first, _, _ = _bptt(second_order=False).estimate(key, theta, carry)
        difference = optax.tree.norm(optax.tree.sub(exact, first))
        assert difference > 1e-3 * optax.tree.norm(exact)


def test_one_truncation_is_the_whole_run(key):
    """A run that is over starts anew inside the derivative, as `bptt`'s does."""
    with jax.enable_x64(True):
        truncated, whole = _truncated(unroll=6), _bptt()
        theta, runs = truncated.init(key)
        over = runs._replace(step=jnp.full_like(runs.step, 6))
        grads, _, info = truncated.estimate(key, theta, over)
        expected, _, expected_info = whole.estimate(key, theta, None)
        chex.assert_trees_all_close((grads, info), (expected, expected_info))


def test_truncations_follow_one_another(key):
    """Three truncations pass through one whole run's points; then it starts anew."""
    with jax.enable_x64(True):
        lopt, estimator = _lstm(), _truncated(num_problems=2)
        theta, runs = estimator.init(key)
        tx = lopt.transform(theta)
        grad_fn = jax.vmap(jax.grad(PROBLEM.loss), (0, 0, None))
        params, state = runs.params, jax.vmap(tx.init)(runs.params)
        for truncation in range(1, 4):
            grads, runs, info = estimator.estimate(key, theta, runs)
            losses = []
            for _ in range(2):
                gradient = grad_fn(params, runs.instance, None)
                updates, state = jax.vmap(tx.update)(gradient, state)
                params = optax.apply_updates(params, updates)
                losses.append(
                    jax.vmap(PROBLEM.loss, (0, 0, None))(params, runs.instance, None)
                )
            chex.assert_trees_all_close(runs.params, params, rtol=1e-10)
            chex.assert_trees_all_close(info.loss, jnp.mean(jnp.stack(losses), 0))
            assert runs.step.tolist() == [2 * truncation] * 2
            assert optax.tree.norm(grads) > 0
        _, after, _ = estimator.estimate(key, theta, runs)
        assert after.step.tolist() == [2, 2]
        assert (after.instance[1] != runs.instance[1]).all()


def test_a_learned_initial_state_has_a_gradient(key):
    """Through the start of a run, in the truncation that makes it."""

    def transform(theta):
        def update(updates, state, params=None, **extra_args):
            del params, extra_args
            return jax.tree.map(lambda m, g: -m * g, state, updates), state

        return optax.GradientTransformationExtraArgs(
            lambda params: jax.tree.map(lambda p: theta * jnp.ones_like(p), params),
            update,
        )

    lopt = jm.LearnedOptimizer(lambda key, params=None: jnp.array(0.01), transform)
    estimator = _truncated(lopt)
    theta, runs = estimator.init(key)
    over = runs._replace(step=jnp.full_like(runs.step, 6))
    assert jnp.abs(estimator.estimate(key, theta, over)[0]) > 0
    assert estimator.estimate(key, theta, runs)[0] == 0


@pytest.mark.parametrize("make", [_bptt, _truncated])
def test_meta_training_helps(make, key):
    init, step = jm.training.make_train_step(
        make(horizon=10, num_problems=8), optax.adam(1e-2)
    )
    train = jax.jit(lambda s: jax.lax.scan(lambda s, _: step(s), s, length=200))
    _, infos = train(init(key))
    assert infos.loss[-20:].mean() < 0.6 * infos.loss[:20].mean()


def test_counts_are_named():
    with pytest.raises(ValueError, match="`horizon` must be a multiple of `unroll`, 4"):
        _truncated(unroll=4)
    with pytest.raises(ValueError, match="`num_problems` must be an int >= 1, got 0"):
        _bptt(num_problems=0)


def test_a_loss_that_is_no_scalar_is_named(key):
    problem = PROBLEM._replace(loss=lambda params, instance, key: params)
    estimator = jm.estimators.bptt(_lstm(), problem, horizon=2, num_problems=1)
    theta, carry = estimator.init(key)
    with pytest.raises(ValueError, match=r"`problem\.loss` must return a float scalar"):
        estimator.estimate(key, theta, carry)


def test_quadratics_are_the_papers(key):
    """Uniform: the mean loss at zero is E|y|^2 = 10 / 3, where the figure starts."""
    problem = jm.problems.quadratics()
    instances = jax.vmap(problem.sample)(jax.random.split(key, 4000))
    losses = jax.vmap(problem.loss, (None, 0, None))(jnp.zeros(10), instances, key)
    interval = 4 * losses.std() / np.sqrt(4000)
    assert abs(losses.mean() - 10 / 3) < interval
    gaussian = jm.problems.quadratics(distribution="gaussian")
    _, y = gaussian.sample(key)
    assert (y < 0).any()


def test_an_unknown_distribution_is_named():
    with pytest.raises(ValueError, match="`distribution` must be one of 'uniform'"):
        jm.problems.quadratics(distribution="cauchy")


def test_horizons_are_log_uniform(key):
    estimator = _truncated(horizon=(4, 64), unroll=4, num_problems=4000)
    _, runs = jax.jit(estimator.init)(key)
    horizons = np.asarray(runs.horizon)
    assert set(horizons % 4) == {0}
    assert (horizons.min(), horizons.max()) == (4, 64)
    # Truncation s = 1 ... 16 has the share log((s + 1) / s) / log(17).
    for s in (1, 2, 16):
        expected = np.log((s + 1) / s) / np.log(17)
        deviation = np.sqrt(expected * (1 - expected) / 4000)
        assert abs((horizons == 4 * s).mean() - expected) < 4 * deviation


def test_runs_end_at_their_own_horizon(key):
    estimator = _truncated(horizon=(2, 8), num_problems=20)
    theta, runs = estimator.init(key)
    first = runs.horizon
    for _ in range(3):
        _, runs, _ = estimator.estimate(key, theta, runs)
    np.testing.assert_array_equal(runs.step == 6, first >= 6)


def test_staggered_runs_are_of_every_age(key):
    estimator = _truncated(staggered=True, num_problems=6)
    theta, runs = estimator.init(key)
    for _ in range(3):
        _, runs, _ = estimator.estimate(key, theta, runs)
    assert sorted(runs.step.tolist()) == [2, 2, 4, 4, 6, 6]


def test_weights_are_those_of_the_steps(key):
    """A weight on the last of six steps alone, over three truncations."""
    with jax.enable_x64(True):
        estimator = _truncated(weight=lambda t, horizon: t == horizon)
        theta, runs = estimator.init(key)
        norms = []
        for _ in range(3):
            grads, runs, _ = estimator.estimate(key, theta, runs)
            norms.append(float(optax.tree.norm(grads)))
        assert norms[:2] == [0, 0]
        assert norms[2] > 0

        def last_loss(weight):
            estimator = _bptt(weight=weight)
            return estimator.estimate(key, theta, None)[0]

        one, other = (lambda t, _: 1.0 * (t <= 3)), (lambda t, _: 1.0 * (t > 3))
        parts = optax.tree.add(last_loss(one), last_loss(other))
        chex.assert_trees_all_close(parts, last_loss(None), rtol=1e-10)


def test_rematerialization_keeps_the_problems_gradients(key):
    """Of a problem far dearer than its optimizer, nothing is computed twice."""
    inputs = jnp.ones((10, 50))
    problem = jm.problems.classification(
        inputs, np.arange(10), jm.models.MLP([2, 10]), batch_size=2000
    )

    def flops(rematerialize):
        estimator = jm.estimators.bptt(
            jm.optimizers.learned_sgd(),
            problem,
            horizon=3,
            num_problems=1,
            second_order=False,
            rematerialize=rematerialize,
        )
        arguments = jax.eval_shape(estimator.init, key)
        lowered = jax.jit(estimator.estimate).lower(key, *arguments)
        return lowered.compile().cost_analysis()["flops"]

    assert flops(rematerialize=True) < 1.1 * flops(rematerialize=False)


@pytest.mark.parametrize("make", [_bptt, _truncated])
def test_a_mesh_changes_nothing(make, key):
    with jax.enable_x64(True):
        alone = make(num_problems=8)
        sharded = make(num_problems=8, mesh=jm.training.task_mesh())
        theta, carry = alone.init(key)
        expected = jax.jit(alone.estimate)(key, theta, carry)
        got = jax.jit(sharded.estimate)(key, theta, carry)
        chex.assert_trees_all_close(got, expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": (8, 4)}, r"`horizon` must be \(lowest, highest\), got \(8, 4\)"),
        ({"horizon": (2, 5)}, "`horizon` must be a multiple of `unroll`, 2, got 5"),
        ({"horizon": lambda step: 8 if step > 3 else 4}, "use `jnp.where`"),
        (
            {"horizon": lambda step: jnp.array([4, 8])},
            "must return a number of updates",
        ),
        ({"horizon": lambda step: 0 * step}, "at least 1, got 0 for meta-step 0"),
        ({"horizon": (2, 4, 6)}, r"an int or \(lowest, highest\)"),
        ({"mesh": jm.training.task_mesh()}, "`num_problems` must be a multiple"),
    ],
)
def test_horizons_and_devices_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        _truncated(**options)


def test_whole_runs_have_one_horizon():
    with pytest.raises(
        ValueError, match=r"`horizon` must be an int >= 1, got \(2, 4\)"
    ):
        jm.estimators.bptt(_lstm(), PROBLEM, horizon=(2, 4), num_problems=2)


def test_what_is_no_learned_optimizer_is_named():
    with pytest.raises(ValueError, match=r"must be a `jaxmeta.LearnedOptimizer`.*rate"):
        _truncated(optax.adam(1e-3))


def test_second_order_is_finite_at_zero_gradients(key):
    problem = jm.OptimizationProblem(
        sample=lambda key: None,
        init=lambda key, instance: jnp.zeros(3),
        loss=lambda x, instance, key: jnp.sum(jnp.square(x)),
    )
    for lopt in (jm.optimizers.lstm(4), jm.optimizers.rnnprop(4)):
        estimator = jm.estimators.bptt(lopt, problem, horizon=3, num_problems=1)
        theta, _ = estimator.init(key)
        chex.assert_tree_all_finite(estimator.estimate(key, theta, None)[0])


def test_a_curriculum_decides_when_a_run_starts(key):
    estimator = _truncated(horizon=lambda step: jnp.where(step < 2, 2, 5))
    theta, runs = estimator.init(key)
    horizons = []
    for step in range(4):
        _, runs, _ = jax.jit(estimator.estimate)(key, theta, runs, step=step)
        horizons.append(int(runs.horizon[0]))
    assert horizons == [2, 2, 6, 6]  # Whole truncations.


def _sometimes_broken():
    """A quadratic, but for about half of the instances, whose loss is infinite."""
    return jm.OptimizationProblem(
        sample=jax.random.bernoulli,
        init=lambda key, instance: jnp.ones(2),
        loss=lambda x, broken, key: jnp.where(broken, jnp.inf, 1.0) * jnp.sum(x**2),
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda **o: jm.estimators.bptt(_lstm(), horizon=4, **o),
        lambda **o: jm.estimators.truncated_bptt(_lstm(), unroll=2, horizon=4, **o),
        lambda **o: jm.estimators.es(_lstm(), horizon=4, **o),
        lambda **o: jm.estimators.pes(_lstm(), unroll=2, horizon=4, **o),
        lambda problem, **o: jm.estimators.imitation(
            _lstm(), problem, optax.sgd(0.1), unroll=2, horizon=4, **o
        ),
    ],
    ids=["bptt", "truncated_bptt", "es", "pes", "imitation"],
)
def test_a_run_that_diverges_does_not_count(make, key):
    estimator = make(problem=_sometimes_broken(), num_problems=16)
    theta, carry = estimator.init(key)
    estimate = jax.jit(estimator.estimate)
    for step_key in jax.random.split(key, 3):
        grads, carry, info = estimate(step_key, theta, carry)
        chex.assert_tree_all_finite(grads)
        assert optax.tree.norm(grads) > 0
        assert 0 < info.is_valid.sum() < 16
        np.testing.assert_array_equal(np.isfinite(info.loss), info.is_valid)
    runs = getattr(carry, "runs", carry)
    if runs is not None:  # Those that broke are over, the others on their way.
        steps = runs.step.reshape(16, -1)[:, 0]
        np.testing.assert_array_equal(steps == 4, ~info.is_valid | (steps == 4))
        assert (np.asarray(steps)[~np.asarray(info.is_valid)] == 4).all()


def test_runs_whose_meta_gradient_is_never_finite_are_replaced(key):
    """Their losses are finite: at 0 the gradient is, and its derivative is not."""
    problem = jm.OptimizationProblem(
        lambda k: jax.random.normal(k, ()),
        lambda k, i: jnp.zeros(2),
        lambda p, i, k: jnp.sum(jnp.abs(p) ** 1.5) + i**2,
    )
    estimator = jm.estimators.truncated_bptt(
        jm.optimizers.learned_sgd(0.1), problem, unroll=2, horizon=100, num_problems=2
    )
    theta, runs = estimator.init(key)
    estimate = jax.jit(estimator.estimate)
    for step_key in jax.random.split(key, 2):
        before = runs.instance
        grads, runs, info = estimate(step_key, theta, runs)
        assert not info.is_valid.any() and np.isnan(info.loss).all()
        assert (runs.step == runs.horizon).all()
        assert optax.tree.norm(grads) == 0  # The mean of none.
    assert (runs.instance != before).all()


def test_the_mean_is_over_the_runs_that_count(key):
    """The same as of these alone, each estimated by itself."""
    with jax.enable_x64(True):
        problem = _sometimes_broken()
        estimator = jm.estimators.bptt(_lstm(), problem, horizon=3, num_problems=6)
        theta, _ = estimator.init(key)
        grads, _, info = jax.jit(estimator.estimate)(key, theta, None)
        alone = []
        for run_key in jax.random.split(key, 6):
            start_key, _ = jax.random.split(run_key)
            if problem.sample(jax.random.split(start_key, 3)[0]):
                continue

            def loss(theta):
                x, tx = jnp.ones(2), _lstm().transform(theta)
                state, total = tx.init(x), 0.0
                for _ in range(3):
                    updates, state = tx.update(2 * x, state, x)
                    x = optax.apply_updates(x, updates)
                    total += jnp.sum(x**2)
                return total

            alone.append(jax.grad(loss)(theta))
        assert len(alone) == info.is_valid.sum()
        expected = jax.tree.map(lambda *g: sum(g) / len(g), *alone)
        chex.assert_trees_all_close(grads, expected, rtol=1e-9)


def test_training_records_the_share_of_excluded_runs(key, tmp_path):
    estimator = jm.estimators.truncated_bptt(
        _lstm(), _sometimes_broken(), unroll=2, horizon=4, num_problems=16
    )
    train_step = jm.training.make_train_step(estimator, optax.adam(1e-3))
    with pytest.warns(UserWarning, match="were excluded from the mean"):
        result = jm.training.fit(
            train_step, num_steps=4, key=key, directory=tmp_path, log_every=2
        )
    chex.assert_tree_all_finite(result.state.meta_params)
    records = jm.training.read_metrics(tmp_path / "metrics.jsonl")
    assert all(0 < r["excluded"] < 1 and np.isfinite(r["loss"]) for r in records)
