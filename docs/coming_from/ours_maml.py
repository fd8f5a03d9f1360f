import jax
import jax.numpy as jnp
import optax
from problem import hidden, output, query_x, query_y, support_x, support_y

import jaxmeta as jm

# --- the code
model = jm.Model(
    init=lambda key, x: {"hidden": jnp.array(hidden), "output": jnp.array(output)},
    apply=lambda w, x: jnp.tanh(x @ w["hidden"]) @ w["output"],
)
learner = jm.maml(
    model, jm.losses.squared_error, inner_tx=optax.sgd(0.05), inner_steps=3
)
tasks = jm.Task(jm.Examples(support_x, support_y), jm.Examples(query_x, query_y))
keys = jax.random.split(jax.random.key(0), 4)

params = model.init(keys[0], support_x[0])
opt = optax.adam(1e-3)
opt_state = opt.init(params)

meta_grad = jax.vmap(learner.meta_grad, (0, None, 0))  # over tasks
grads, info = jax.jit(meta_grad)(keys, params, tasks)
grads = jax.tree.map(lambda g: g.mean(0), grads)
updates, opt_state = opt.update(grads, opt_state)
params = optax.apply_updates(params, updates)
# --- the end
print(f"{info.loss.mean():.3f} {optax.tree.norm(grads):.3f}")
