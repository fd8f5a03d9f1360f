import jax
import jax.numpy as jnp
import optax
from problem import hidden, output, query_x, query_y, support_x, support_y

# --- the code
params = {"hidden": jnp.array(hidden), "output": jnp.array(output)}
inner_tx, opt = optax.sgd(0.05), optax.adam(1e-3)
opt_state = opt.init(params)


def loss(params, x, y):
    predicted = jnp.tanh(x @ params["hidden"]) @ params["output"]
    return jnp.mean((predicted - y) ** 2)


def loss_after_adaptation(params, support_x, support_y, query_x, query_y):
    inner_state = inner_tx.init(params)
    for _ in range(3):
        grads = jax.grad(loss)(params, support_x, support_y)
        updates, inner_state = inner_tx.update(grads, inner_state, params)
        params = optax.apply_updates(params, updates)
    return loss(params, query_x, query_y)


def meta_loss(params):
    after = jax.vmap(loss_after_adaptation, (None, 0, 0, 0, 0))
    return jnp.mean(after(params, support_x, support_y, query_x, query_y))


value, grads = jax.jit(jax.value_and_grad(meta_loss))(params)
updates, opt_state = opt.update(grads, opt_state)
params = optax.apply_updates(params, updates)
# --- the end
print(f"{value:.3f} {optax.tree.norm(grads):.3f}")
