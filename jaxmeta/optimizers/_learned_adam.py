"""Adam whose rates and momenta a small network schedules, tensor by tensor.

References:
  Metz et al., "VeLO: Training versatile learned optimizers by scaling up", 2022: one
  network per tensor sets what the update of its parameters does.
  https://arxiv.org/abs/2211.09760
  Moudgil et al., "Celo: Training versatile learned optimizers on a compute diet", TMLR
  2025: a learned scheduler on top of Adam's direction. https://arxiv.org/abs/2501.12670
  Harrison, Metz, Sohl-Dickstein, "A closer look at learned optimization: stability,
  robustness, and inductive biases", NeurIPS 2022. https://arxiv.org/abs/2209.11208
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmeta import _checks, _describe, base
from jaxmeta.optimizers import _coordinates, _rule

_MOMENTUM_DECAYS = (0.5, 0.9, 0.98)
_SQUARE_DECAYS = (0.99, 0.999)
# Of what a tensor's products are taken: its gradient, three momenta, its parameters,
# and the second moment and its inverse root, whose product is the root.
_GRAD, _FAST, _MIDDLE, _SLOW, _PARAM, _SQUARE, _INVERSE = range(7)
_PAIRS = (
    *((i, i) for i in range(5)),
    (_GRAD, _MIDDLE),
    (_FAST, _MIDDLE),
    (_MIDDLE, _SLOW),
    (_MIDDLE, _PARAM),
    (_SQUARE, _INVERSE),
)
_NUM_FEATURES = 21
# The rate's logarithm, the change of its offset, and the weights of four directions.
_NUM_OUTPUTS = 6
# Gradients from here on are as bad as infinite ones: their squares are.
_MOST = 1e18
# From so many inputs on, the rate of a kernel falls with their root. Weights start at
# one over the root of their number, and steps of one sign add up over them, so a step's
# share of an output grows with it. Meta-training sees few kernels as wide; and the rows
# of a large embedding do not add up.
_WIDE, _WIDEST = 64, 1024
# From so many tensors on, all rates fall with the root of their number: every layer's
# step changes the output. Meta-training sees at most seven and a half.
_DEEP = 8
# Entries of a tensor from which on sums are taken pair by pair.
_LARGE = 4096
# Where weights of directions start: Adam's, whose momentum has a decay of 0.9.
_ADAM = (0.0, 0.0, 1.0, 0.0)


class LearnedAdamTheta(NamedTuple):
    """Meta-parameters of `learned_adam` with H hidden units."""

    hidden: _coordinates.Linear  # kernel [21, H]
    output: _coordinates.Linear  # kernel [H, 6]
    skip: jax.Array  # [21, 6], around the hidden layer


class LearnedAdamState(NamedTuple):
    """State of `learned_adam`; trees like the parameters."""

    count: jax.Array  # [] int32, updates made
    skipped: jax.Array  # [] int32, updates not made for a non-finite gradient
    mu: tuple[Any, Any, Any]  # momenta, decays 0.5, 0.9 and 0.98
    nu: tuple[Any, Any]  # second moments, decays 0.99 and 0.999
    rate: Any  # leaves []: the integrated part of the rate's logarithm
    agreement: Any  # leaves []: mean cosine of gradients and the momentum before them


def learned_adam(
    total_steps: int | jax.Array | None = None,
    *,
    weight_decay: float = 0.0,
    hidden_size: int = 8,
    base_rate: float = 0.01,
) -> base.LearnedOptimizer:
    r"""Adam, scheduled per tensor by a small network.

    With the momenta :math:`m^{(\beta)}` of the gradient g, bias-corrected, and
    :math:`\hat v = \max(\hat v^{(.99)}, \hat v^{(.999)})`, the update of a tensor is

    .. math::
      u = -\alpha_t \left(c_0\, g + c_1 m^{(.5)} + c_2 m^{(.9)} + c_3 m^{(.98)}\right)
        / \sqrt{\hat v}, \qquad
      \alpha_t = 0.01\, d\, k\, w_t (1 - t / T)\, e^{a_t + s_t}, \qquad
      s_{t+1} = s_t + r_t / (5 + 0.15 t)

    where d is the root of 8 over the number of tensors, if that is larger (biases
    hardly count: it is :math:`(\sum_i \sqrt{n_i})^2 / \sum_i n_i` for tensors of
    :math:`n_i` parameters), k is the root of 64 over the number of a kernel's inputs
    (from 64 to 1,024), 1 for other tensors, w warms up over 3 % of the T steps, and the
    network outputs a, r and c. It sees 21 numbers per tensor, none of which depends on
    the scale of the loss: the share of steps done, their number, the sizes of
    parameters and directions, cosines between gradient and momenta, the tensor's shape,
    means of these over all tensors, and how large its gradients are beside other
    tensors': with inputs of 0 to 255, those of kernels are a hundred times those of
    biases.
    Untrained, it is Adam with a warm-up, a linear decay and lower rates for wide
    kernels and deep networks.

    Zero gradients move nothing. An update with a non-finite gradient, or one over 1e18,
    is skipped and counted in the state, and halves later rates. After T steps, the rate
    stays at that of the last.

    Args:
      total_steps: T, the number of updates that are planned. None: `update` is told it
        as an extra argument, `total_steps=T`, as estimators for meta-training do.
      weight_decay: times the rate and the parameters, subtracted too, as in AdamW.
      hidden_size: H, units of the network. Static.
      base_rate: the 0.01 of the formula.

    Returns:
      A `LearnedOptimizer`. Its state is 5 numbers per parameter and 2 per tensor; its
      update requires the parameters.

    Raises:
      ValueError: if `hidden_size` or `total_steps` is not positive, or `weight_decay`
        negative; from `transform`, if `theta` does not match this architecture; from
        the transformation, if parameters are complex, `params` is missing, or T is
        unknown.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> lopt = learned_adam(total_steps=100)
      >>> tx = lopt.transform(lopt.init(jax.random.key(0)))
      >>> params = jnp.ones(3)
      >>> updates, _ = tx.update(2 * params, tx.init(params), params)
      >>> bool((updates < 0).all())
      True
    """
    description = _describe.describe(learned_adam, locals())
    _checks.check_int("hidden_size", hidden_size)
    _checks.check_positive("base_rate", base_rate)
    if not weight_decay >= 0:
        raise ValueError(f"`weight_decay` must be at least 0, got {weight_decay}.")

    decay = float(weight_decay)

    def init(key):
        hidden = _coordinates.init_linear(key, _NUM_FEATURES, hidden_size)
        zeros = functools.partial(jnp.zeros, dtype=hidden.bias.dtype)
        return LearnedAdamTheta(
            hidden,
            _coordinates.Linear(
                zeros((hidden_size, _NUM_OUTPUTS)), zeros(_NUM_OUTPUTS)
            ),
            zeros((_NUM_FEATURES, _NUM_OUTPUTS)),
        )

    def init_state(theta, params, compute):
        del theta
        moment = lambda _: optax.tree.zeros_like(params, compute)
        scalars = lambda: jax.tree.map(lambda _: jnp.zeros((), compute), params)
        return LearnedAdamState(
            jnp.zeros((), jnp.int32),
            jnp.zeros((), jnp.int32),
            tuple(map(moment, _MOMENTUM_DECAYS)),
            tuple(map(moment, _SQUARE_DECAYS)),
            scalars(),
            scalars(),
        )

    def update(theta, grads, state, *, params, total_steps):
        leaves, treedef = jax.tree.flatten(grads)
        if not leaves:
            return grads, state
        compute = theta.skip.dtype
        flat = treedef.flatten_up_to
        stack = lambda tree: jnp.stack(flat(tree))  # what tensors have, to [n, ...]
        unstack = lambda xs: treedef.unflatten(list(xs))

        is_safe = _is_safe(leaves, compute)
        time = _Time(state.count, state.skipped, total_steps, compute)
        seen = is_safe, *map(time.corrections, (_MOMENTUM_DECAYS, _SQUARE_DECAYS))
        sums, *moments = _coordinates.map_unzipped(
            functools.partial(_accumulate, seen),
            1 + len(_MOMENTUM_DECAYS) + len(_SQUARE_DECAYS),
            grads,
            params,
            *state.mu,
            *state.nu,
        )
        mean = lambda x, g: x / max(1, g.size)
        products = stack(jax.tree.map(mean, sums, grads))  # [n, 10]

        agreement = 0.9 * stack(state.agreement) + 0.1 * _agreement(products, time)
        features = _features(products, agreement, stack(state.rate), time, flat(params))
        x = jnp.tanh(_coordinates.apply_linear(theta.hidden, features))
        outputs = _coordinates.apply_linear(theta.output, x) + features @ theta.skip
        change = jnp.clip(outputs[:, 1], -2, 2) / (5 + 0.15 * time.count)
        rate = jnp.clip(stack(state.rate) + change, -4, 4)
        exponent = jnp.minimum(jnp.clip(outputs[:, 0], -4, 4) + rate, 3.5)
        alphas = base_rate * time.warm_up * time.left * jnp.exp(exponent)
        alphas *= _rate_factors(flat(params)).astype(compute)
        mixing = jnp.array([_ADAM], compute) + outputs[:, 2:] / 2

        (steps,) = _coordinates.map_unzipped(
            functools.partial(_step, seen, decay),
            1,
            grads,
            params,
            unstack(alphas),
            unstack(mixing),
            *moments,
        )
        choose = functools.partial(jnp.where, is_safe)
        one_more = lambda count: jnp.asarray(optax.safe_increment(count))
        mu, nu = _parted(moments)
        slower = jnp.maximum(stack(state.rate) - math.log(2), -4)
        return steps, LearnedAdamState(
            count=choose(one_more(state.count), state.count),
            skipped=choose(state.skipped, one_more(state.skipped)),
            mu=mu,
            nu=nu,
            rate=unstack(choose(rate, slower)),
            agreement=unstack(choose(agreement, stack(state.agreement))),
        )

    return _rule.from_network(
        description,
        init,
        init_state,
        update,
        needs=("params",),
        takes_total_steps=True,
        total_steps=total_steps,
    )


def _is_safe(leaves, dtype):
    """Whether all gradients are finite, and their squares."""
    is_bad = [jnp.any(~(jnp.abs(g) < _MOST)) for g in leaves]
    # Counted by a product: a sum or `any` would be computed again in every kernel.
    count = jnp.stack(is_bad).astype(dtype).reshape(1, -1)
    return (count @ count.T)[0, 0] == 0


class _Time:
    """What the rule knows of time; `count` is of the updates before this one."""

    def __init__(self, count, skipped, total_steps, dtype):
        self.total = jnp.asarray(total_steps, dtype)
        self.count = count.astype(dtype)
        step = (count + skipped).astype(dtype)
        self.progress = jnp.clip(step / self.total, 0, 1)
        self.left = jnp.maximum(1 - self.progress, 1 / self.total)
        self.warm_up = jnp.minimum(1, (self.count + 1) / (0.03 * self.total + 2))

    def corrections(self, decays):
        """What bias-corrected moments are divided by."""
        return [1 - decay ** (self.count + 1) for decay in decays]


def _parted(moments):
    """Momenta, and second moments."""
    count = len(_MOMENTUM_DECAYS)
    return tuple(moments[:count]), tuple(moments[count:])


def _accumulate(seen, grads, params, *moments):
    """Sums over the tensor of the products in `_PAIRS`, and the moments after it."""
    is_safe, *_ = seen
    mu, nu = _parted(moments)
    # Nothing of a gradient that is skipped, not even of its finite entries.
    grads = jnp.where(is_safe, grads, 0)
    mu, nu = (
        tuple(
            jnp.where(is_safe, decay * x + (1 - decay) * grads**order, x)
            for x, decay in zip(xs, decays, strict=True)
        )
        for order, xs, decays in ((1, mu, _MOMENTUM_DECAYS), (2, nu, _SQUARE_DECAYS))
    )
    return _products(_planes(seen, grads, params, mu, nu)), *mu, *nu


def _step(seen, weight_decay, grads, params, alpha, mixing, *moments):
    """The update of a tensor, with its moments after the gradient."""
    is_safe, *_ = seen
    grads = jnp.where(is_safe, grads, 0)
    planes = _planes(seen, grads, params, *_parted(moments))
    mixed = sum(mixing[i] * planes[i] for i in range(len(_ADAM)))
    return (jnp.where(is_safe, -alpha * (mixed + weight_decay * params), 0),)


def _planes(seen, grads, params, mu, nu):
    """Gradient and momenta over the root of the second moment, parameters, that moment.

    And its inverse root.
    """
    _, of_mu, of_nu = seen
    square = jnp.maximum(*(x / c for x, c in zip(nu, of_nu, strict=True)))
    scale = _coordinates.inverse_root(square)
    momenta = [x * (scale / c) for x, c in zip(mu, of_mu, strict=True)]
    return grads * scale, *momenta, params, square, scale


def _products(planes):
    """Sums over the tensor of the products in `_PAIRS`, [10]."""
    axes = tuple(range(planes[0].ndim))
    if planes[0].size >= _LARGE:
        if any(jax.typeof(planes[0]).sharding.spec):
            # A `dot` over axes with explicit shardings would have to be told its own.
            dot = lambda x, y: jnp.sum(x * y)
        else:
            dot = lambda x, y: jax.lax.dot_general(x, y, ((axes, axes), ((), ())))
        return jnp.stack([dot(planes[i], planes[j]) for i, j in _PAIRS])
    # All sums in one loop. It has one accumulator for each: no loop for millions.
    products = tuple(planes[i] * planes[j] for i, j in _PAIRS)
    zeros = (jnp.zeros((), planes[0].dtype),) * len(_PAIRS)
    add = lambda xs, ys: tuple(x + y for x, y in zip(xs, ys, strict=True))
    return jnp.stack(jax.lax.reduce(products, zeros, add, axes))


def _agreement(products, time):
    """Cosines of gradients and the middle momentum before their update, [n]."""
    correction = time.corrections((0.9,))[0]
    at = {pair: products[:, i] for i, pair in enumerate(_PAIRS)}
    gg, gm, mm = at[_GRAD, _GRAD], at[_GRAD, _MIDDLE], at[_MIDDLE, _MIDDLE]
    # m = 0.9 m' + 0.1 g, where m = correction * (what the planes have).
    dot = (gm * correction - 0.1 * gg) / 0.9
    square = (correction**2 * mm - 0.2 * correction * gm + 0.01 * gg) / 0.81
    # At the first update the momentum before it was 0, its square here is rounding.
    cosine = dot * jax.lax.rsqrt(jnp.maximum(square, 0) * gg + 1e-5)
    return jnp.clip(cosine, -1, 1)


def _features(products, agreement, rate, time, params):
    """What the network sees of each tensor, about 1 in size, [n, 21]."""
    at = {pair: products[:, i] for i, pair in enumerate(_PAIRS)}
    agreement = agreement / time.corrections((0.9,))[0]
    inverse = [jax.lax.rsqrt(at[i, i] + 1e-12) for i in range(_PARAM + 1)]
    cosine = lambda i, j: at[i, j] * inverse[i] * inverse[j]
    log_size = lambda i, least: jnp.log(at[i, i] + least) / 2  # of a root mean square
    param = log_size(_PARAM, 1e-5)
    grad, middle, slow = (log_size(i, 1e-6) for i in (_GRAD, _MIDDLE, _SLOW))
    sizes = _sizes(params)
    fan_in = np.array([_fan_in(x) for x in params], float)
    is_vector = np.array([x.ndim < 2 for x in params], float)
    share = np.sqrt(sizes) / np.sum(np.sqrt(sizes))
    mean = lambda x: jnp.sum(share * x)  # over tensors
    columns = [
        2 * time.progress - 1,
        jnp.log(time.left + 1 / time.total) / 2,
        jnp.log(time.total / 300) / 2,
        jnp.log((time.count + 1) / 30) / 2,
        param / 2 + 1.25,
        np.log(fan_in + 1) / 3 - 0.5,
        (np.log(sizes) - 5) / 3,
        is_vector,
        2 * agreement,
        cosine(_FAST, _MIDDLE) - 0.5,
        cosine(_MIDDLE, _SLOW) - 0.5,
        middle + 1,
        slow + 1.5,
        grad,
        2 * cosine(_MIDDLE, _PARAM),
        mean(2 * agreement),
        mean(cosine(_MIDDLE, _SLOW)) - 0.5,
        mean(middle) + 1,
        mean(grad),
        rate / 2,
        jnp.clip(_beside_others(at[_SQUARE, _INVERSE]) / 3, -2, 2),
    ]
    spread = lambda x: jnp.broadcast_to(jnp.asarray(x, products.dtype), len(params))
    return jnp.stack([*map(spread, columns)], 1)


def _fan_in(x):
    return math.prod(x.shape[:-1]) or 1


def _rate_factors(params):
    """Lower rates for kernels with many inputs, and where tensors are many."""
    sizes = _sizes(params)
    count = np.sum(np.sqrt(sizes)) ** 2 / np.sum(sizes)  # Biases hardly count.
    width = _WIDE / np.clip([_fan_in(x) for x in params], _WIDE, _WIDEST)
    return np.sqrt(width * _DEEP / max(count, _DEEP))


def _sizes(params):
    return np.array([max(1, x.size) for x in params], float)


def _beside_others(sizes):
    """log(size / geometric mean of all); gradients that are zero do not count."""
    is_there = sizes > 0
    logs = jnp.where(is_there, jnp.log(jnp.where(is_there, sizes, 1)), 0)
    mean = jnp.sum(logs) / jnp.maximum(jnp.sum(is_there), 1)
    return jnp.where(is_there, logs - mean, 0)
