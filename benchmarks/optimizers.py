"""Optimizers on problems that no rule of ours was trained on.

    python -m benchmarks.optimizers --data FOLDER

Fourteen problems, of other data, architectures and sizes than those of
`problems.small_networks`: "general" as it is, beside optax's optimizers with a rate
tuned for each problem and number of updates, on other seeds than those of the test. The
folder has `mnist/mnist.npz`, `omniglot/omniglot_28x28.npz`, `icons/iconify_32x32.npz`,
`cifar10/cifar10_jpeg_pack.npz` and `text/fortunes.txt`; problems whose data are missing
are left out.
"""

import argparse
import io
import json
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmeta as jm
from benchmarks import _timing

RESULTS = pathlib.Path(__file__).parent / "results" / "optimizers.json"
RATES = tuple(float(f"{rate:.1e}") for rate in 10 ** np.arange(-4, 0.1, 0.5))
FEW, MANY = 1000, 3000  # examples of which the full losses are taken, or at most
TUNING_SEEDS = 2


class Data(NamedTuple):
    """Examples to train on, and others."""

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


class Case(NamedTuple):
    """A problem of the benchmark."""

    data: Data
    model: Any
    loss: Callable[..., jax.Array] = jm.losses.cross_entropy
    batch_size: int = 64


# Problems.


def cases(folder: pathlib.Path) -> dict[str, Callable[[], Case]]:
    """Name -> problem, in the order of the table."""
    mlp, act = jm.models.MLP, jax.nn
    squared = jm.losses.squared_error
    mnist = lambda size: _images(*_mnist(folder), size)
    icons = lambda size: _images(*_icons(folder), size)
    as_targets = lambda data: Data(*((x, x) for x, _ in data))
    return {
        "MNIST, 3 layers of 64, swish": lambda: Case(
            _flat(mnist(14)), mlp([64, 64, 64, 10], activation=act.swish)
        ),
        "MNIST, softmax regression": lambda: Case(_flat(mnist(14)), mlp([10])),
        "MNIST, convolutions and batch norm": lambda: Case(
            mnist(28), jm.models.Conv4(8, head=10, strided=True), batch_size=32
        ),
        "icons, 2 layers of 48, ReLU": lambda: Case(
            _flat(icons(16)), mlp([48, 48, 20], activation=act.relu)
        ),
        "icons, autoencoder": lambda: Case(
            as_targets(_flat(icons(16))),
            mlp([64, 12, 64, 256], activation=act.relu),
            squared,
            32,
        ),
        "Omniglot, 4 layers of 40, tanh": lambda: Case(
            _flat(_images(*_omniglot(folder), 14)), mlp([40] * 4 + [50])
        ),
        "CIFAR-10 (JPEG), convolutions": lambda: Case(
            _images(*_cifar10(folder), 32), jm.models.ConvNet(10), batch_size=32
        ),
        "characters, transformer": lambda: Case(
            _text(folder, 32),
            jm.models.Transformer(vocabulary=64),
            batch_size=16,
        ),
        "characters, gated recurrence": lambda: Case(
            _text(folder, 24), _recurrent(48), batch_size=16
        ),
        "regression, ill-conditioned": lambda: Case(_linear(), mlp([1]), squared, 32),
        "regression, 2 layers of 32, tanh": lambda: Case(
            _friedman(), mlp([32, 32, 1], activation=jnp.tanh), squared, 32
        ),
        "matrix of rank 8": lambda: Case(_matrix(), _factors(), squared, 256),
        "addition modulo 31": lambda: Case(_modular(31), _adder(31), batch_size=128),
        "image as a function of place": lambda: Case(
            _picture(), _fourier(64), squared, 128
        ),
    }


def _split(inputs, targets, num_test=FEW):
    order = np.random.default_rng(0).permutation(len(inputs))
    inputs, targets = inputs[order], targets[order]
    num_test = min(num_test, len(inputs) // 5)
    return Data(
        (inputs[num_test:], targets[num_test:]), (inputs[:num_test], targets[:num_test])
    )


def _images(images, labels, size, most=12_000):
    """Images [N, size, size, C], standardised."""
    order = np.random.default_rng(1).permutation(len(images))[:most]
    images, labels = images[order], labels[order]
    shape = len(images), size, size, images.shape[-1]
    images = jax.image.resize(jnp.asarray(images, jnp.float32), shape, "linear")
    images = np.asarray((images - images.mean()) / images.std())
    return _split(images, labels.astype(np.int32))


def _flat(data):
    return Data(*((x.reshape(len(x), -1), y) for x, y in data))


def _mnist(folder):
    with np.load(folder / "mnist" / "mnist.npz") as z:
        return z["x_train"][..., None], z["y_train"]


def _icons(folder, classes=20):
    with np.load(folder / "icons" / "iconify_32x32.npz") as z:
        images, labels = z["images"], z["labels"]
    chosen = labels < classes
    return images[chosen][..., None], labels[chosen]


def _omniglot(folder, classes=50):
    with np.load(folder / "omniglot" / "omniglot_28x28.npz") as z:
        images = z["background"][:classes]
    labels = np.repeat(np.arange(classes), images.shape[1])
    return images.reshape(-1, 28, 28, 1), labels


def _cifar10(folder, count=6000):
    from PIL import Image

    with np.load(folder / "cifar10" / "cifar10_jpeg_pack.npz") as z:
        data, ends, labels = z["train_jpeg"], z["train_offsets"], z["train_labels"]
    chosen = np.random.default_rng(0).choice(len(labels), count, replace=False)
    decode = lambda i: np.asarray(
        Image.open(io.BytesIO(data[ends[i] : ends[i + 1]].tobytes()))
    )
    return np.stack([decode(i) for i in chosen]), labels[chosen]


def _text(folder, length, vocabulary=64):
    """Windows of characters [N, L] and those that follow; the rarest are one."""
    text = np.frombuffer((folder / "text" / "fortunes.txt").read_bytes(), np.uint8)
    common = np.argsort(-np.bincount(text, minlength=256))[: vocabulary - 1]
    code = np.full(256, vocabulary - 1, np.int32)
    code[common] = np.arange(vocabulary - 1)
    text = code[text[: len(text) // (length + 1) * (length + 1)]]
    windows = text.reshape(-1, length + 1)[:12_000]
    return _split(windows[:, :-1], windows[:, 1:])


def _linear(dim=40):
    draw = np.random.default_rng(0)
    x = draw.normal(size=(2000, dim)) * np.geomspace(1, 0.01, dim)
    y = x @ draw.normal(size=(dim, 1)) / np.geomspace(1, 0.1, dim).mean()
    return _split(x.astype("f"), (y + 0.05 * draw.normal(size=y.shape)).astype("f"))


def _friedman():
    """Friedman's first function of ten uniform inputs, standardised."""
    draw = np.random.default_rng(0)
    x = draw.random((3000, 10))
    y = 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2
    y = y + 10 * x[:, 3] + 5 * x[:, 4] + draw.normal(size=len(x))
    y = (y - y.mean()) / y.std()
    return _split((x - 0.5).astype("f") * 3, y[:, None].astype("f"))


def _matrix(rows=100, columns=80, rank=8):
    draw = np.random.default_rng(0)
    entries = draw.normal(size=(rows, rank)) @ draw.normal(size=(rank, columns))
    entries = entries / rank**0.5
    pairs = np.stack(
        np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1
    )
    return _split(pairs.reshape(-1, 2), entries.reshape(-1, 1).astype("f"))


def _modular(base):
    pairs = np.stack(np.meshgrid(np.arange(base), np.arange(base), indexing="ij"), -1)
    pairs = pairs.reshape(-1, 2)
    return _split(pairs, (pairs.sum(1) % base).astype(np.int32))


def _picture(size=48):
    """A drawing of rings and waves, by coordinates in [-1, 1]."""
    axis = np.linspace(-1, 1, size)
    place = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    radius = np.hypot(*place.T)
    value = np.sin(12 * radius) * np.exp(-radius) + 0.5 * np.sign(
        place[:, 0] * place[:, 1]
    )
    return _split(place.astype("f"), value[:, None].astype("f"))


# Models that jaxmeta does not have.


def _dense(key, num_inputs, num_outputs):
    kernel = jax.random.normal(key, (num_inputs, num_outputs)) / num_inputs**0.5
    return {"kernel": kernel, "bias": jnp.zeros(num_outputs)}


def _apply(layer, x):
    return x @ layer["kernel"] + layer["bias"]


def _recurrent(units, vocabulary=64):
    """An LSTM over embedded characters."""

    def init(key, tokens):
        del tokens
        keys = jax.random.split(key, 3)
        return {
            "embedding": jax.random.normal(keys[0], (vocabulary, units)) / 3,
            "cell": _dense(keys[1], 2 * units, 4 * units),
            "head": _dense(keys[2], units, vocabulary),
        }

    def apply(params, tokens):
        x = params["embedding"][tokens]

        def step(carry, x):
            hidden, cell = carry
            gates = _apply(params["cell"], jnp.concatenate([x, hidden], -1))
            i, f, o, candidate = jnp.split(gates, 4, -1)
            cell = jax.nn.sigmoid(f + 1) * cell
            cell = cell + jax.nn.sigmoid(i) * jnp.tanh(candidate)
            hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
            return (hidden, cell), hidden

        zeros = jnp.zeros((len(tokens), units))
        _, hidden = jax.lax.scan(step, (zeros, zeros), x.swapaxes(0, 1))
        return _apply(params["head"], hidden.swapaxes(0, 1))

    return jm.Model(init, apply)


def _factors(rows=100, columns=80, rank=8):
    def init(key, pairs):
        del pairs
        keys = jax.random.split(key)
        draw = lambda key, size: jax.random.normal(key, (size, rank)) / 3
        return {"rows": draw(keys[0], rows), "columns": draw(keys[1], columns)}

    def apply(params, pairs):
        product = params["rows"][pairs[:, 0]] * params["columns"][pairs[:, 1]]
        return jnp.sum(product, -1, keepdims=True)

    return jm.Model(init, apply)


def _adder(base, dim=32):
    def init(key, pairs):
        del pairs
        keys = jax.random.split(key, 3)
        return {
            "embedding": jax.random.normal(keys[0], (base, dim)) / 2,
            "hidden": _dense(keys[1], 2 * dim, 96),
            "head": _dense(keys[2], 96, base),
        }

    def apply(params, pairs):
        x = params["embedding"][pairs].reshape(len(pairs), -1)
        return _apply(params["head"], jax.nn.relu(_apply(params["hidden"], x)))

    return jm.Model(init, apply)


def _fourier(units):
    """Sines of random waves, then two layers: an image by its coordinates."""
    waves = jnp.asarray(4 * np.random.default_rng(0).normal(size=(2, 32)), jnp.float32)
    net = jm.models.MLP([units, units, 1], activation=jax.nn.gelu)
    features = lambda x: jnp.concatenate([jnp.sin(x @ waves), jnp.cos(x @ waves)], -1)
    return jm.Model(
        init=lambda key, x: net.init(key, features(x)),
        apply=lambda params, x: net.apply(params, features(x)),
    )


# Optimizers: rate -> transformation; all know the number of updates.


def optimizers() -> dict[str, Callable[[Any, Any], optax.GradientTransformation]]:
    """Name -> (rate, number of updates) -> transformation."""

    def cosine(make):
        def scheduled(rate, total):
            decay = lambda t: rate * 0.5 * (1 + jnp.cos(jnp.pi * t / total))
            return make(decay)

        return scheduled

    nesterov = lambda rate: optax.sgd(rate, momentum=0.9, nesterov=True)
    adamw = lambda rate: optax.adamw(rate, weight_decay=1e-2)
    return {
        "adam, constant": lambda rate, total: optax.adam(rate),
        "adam, cosine": cosine(optax.adam),
        "adamw, cosine": cosine(adamw),
        "nag, cosine": cosine(nesterov),
        "lion, cosine": cosine(optax.lion),
        "muon, cosine": cosine(optax.contrib.muon),
        "schedule-free": lambda rate, total: optax.contrib.schedule_free_adamw(rate),
    }


def general(theta: Any | None) -> Callable[[Any, Any], Any]:
    """Our rule, which has no rate."""
    if theta is None:
        theta = jm.optimizers.load_pretrained("general").theta

    def make(rate, total):
        del rate
        return jm.optimizers.learned_adam(total).transform(theta)

    return make


def runner(case: Case, make: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """Returns `(rate, total, seeds [S]) -> losses [S, 2]` on training and test data."""
    data = jax.tree.map(jnp.asarray, case.data)
    seen = jax.tree.map(lambda x: x[:MANY], data.train)

    def loss(params, batch):
        inputs, targets = batch
        outputs = case.model.apply(params, inputs)
        if outputs.ndim == 3:  # Of a sequence all tokens are examples.
            outputs = outputs.reshape(-1, outputs.shape[-1])
            targets = targets.reshape(-1)
        return case.loss(outputs, targets)

    @jax.jit
    def run(rate, total, seeds):
        def one(seed):
            start_key, run_key = jax.random.split(jax.random.key(seed))
            params = case.model.init(start_key, data.train[0][:2])
            tx = make(rate, total)

            def body(k, carry):
                params, state = carry
                key = jax.random.fold_in(run_key, k)
                rows = jax.random.randint(
                    key, (case.batch_size,), 0, len(data.train[0])
                )
                batch = jax.tree.map(lambda x: x[rows], data.train)
                grads = jax.grad(loss)(params, batch)
                updates, state = tx.update(grads, state, params)
                return optax.apply_updates(params, updates), state

            start = params, tx.init(params)
            params, state = jax.lax.fori_loop(0, total, body, start)
            if hasattr(state, "z"):  # What schedule-free evaluates is an average.
                params = optax.contrib.schedule_free_eval_params(state, params)
            return jnp.stack([loss(params, seen), loss(params, data.test)])

        return jax.lax.map(one, seeds)

    return run


def measure(case: Case, steps: Sequence[int], seeds: int, names: Sequence[str], theta):
    """Steps -> optimizer -> its rate and losses."""
    found: dict[str, Any] = {str(total): {} for total in steps}
    everyone = {"general": general(theta)} | optimizers()
    tuning = jnp.arange(1000, 1000 + TUNING_SEEDS)
    test = jnp.arange(seeds)
    for name in names:
        run = runner(case, everyone[name])
        rates = (1.0,) if name == "general" else RATES
        for total in steps:
            finals = [1.0]
            if len(rates) > 1:
                finals = [run(rate, total, tuning)[:, 0].mean() for rate in rates]
                finals = [float(x) if np.isfinite(x) else np.inf for x in finals]
            best = rates[int(np.argmin(finals))]
            jax.block_until_ready(run(best, 0, test))  # Compiles.
            start = time.process_time()
            losses = np.asarray(run(best, total, test))
            seconds = time.process_time() - start
            found[str(total)][name] = {
                "rate": best,
                "train": losses[:, 0].tolist(),
                "test": losses[:, 1].tolist(),
                "us_per_step": 1e6 * seconds / total / seeds,
            }
            if name == "adam, constant":
                losses = np.asarray(run(1e-3, total, test))
                found[str(total)]["adam, 1e-3"] = {
                    "rate": 1e-3,
                    "train": losses[:, 0].tolist(),
                    "test": losses[:, 1].tolist(),
                }
    first = runner(case, everyone[names[0]])(1.0, 0, test)
    return {"first": np.asarray(first)[:, 0].tolist(), "steps": found}


def summary(problems: dict[str, Any], steps: int, rival: str) -> dict[str, float]:
    """Ratios of our final training loss to a rival's, floored at 1e-4 of the first."""
    ratios = []
    for found in problems.values():
        first = np.mean(found["first"])
        ours, theirs = (
            max(np.mean(found["steps"][str(steps)][name]["train"]), 1e-4 * first)
            for name in ("general", rival)
        )
        ratios.append(ours / theirs if np.isfinite(theirs) else 0.0)
    ratios = np.array(ratios)
    return {
        "geometric_mean": float(np.exp(np.log(np.maximum(ratios, 1e-9)).mean())),
        "median": float(np.median(ratios)),
        "better": int((ratios < 1).sum()),
        "problems": len(ratios),
    }


def table(problems: dict[str, Any], steps: Sequence[int]) -> str:
    """Returns the Markdown tables: a row a problem, and the ratios to each rival."""
    lines = []
    for total in steps:
        names = [*next(iter(problems.values()))["steps"][str(total)]]
        lines += ["", f"{total} updates:", ""]
        lines += [
            "| problem | " + " | ".join(names) + " |",
            "|---" * (len(names) + 1) + "|",
        ]
        for problem, found in problems.items():
            cells = [
                f"{np.mean(found['steps'][str(total)][name]['train']):.3g}"
                for name in names
            ]
            lines.append(f"| {problem} | " + " | ".join(cells) + " |")
        for rival in names:
            if rival != "general":
                lines.append(f"{rival}: {summary(problems, total, rival)}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--steps", type=int, nargs="*", default=[200, 1000, 5000])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", nargs="*", help="problems whose names begin so")
    parser.add_argument("--rivals", nargs="*", default=list(optimizers()))
    parser.add_argument("--theta", type=pathlib.Path, help="of our rule")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    args = parser.parse_args(argv)
    theta = None
    if args.theta is not None:
        like = jax.eval_shape(jm.optimizers.learned_adam().init, jax.random.key(0))
        theta = jm.training.load(args.theta, like=like)
    problems: dict[str, Any] = {}
    for name, make in cases(args.data).items():
        if args.only and not name.startswith(tuple(args.only)):
            continue
        try:
            case = make()
        except FileNotFoundError as error:
            print(f"{name}: left out, {error}")
            continue
        names = ["general", *args.rivals]
        problems[name] = measure(case, args.steps, args.seeds, names, theta)
        result = {"environment": _timing.environment(), "problems": problems}
        args.out.write_text(json.dumps(result, indent=1) + "\n")
        for total in args.steps:
            row = problems[name]["steps"][str(total)]
            means = {k: f"{np.mean(v['train']):.3g}" for k, v in row.items()}
            print(name, total, means, flush=True)
    print(table(problems, args.steps))


if __name__ == "__main__":
    main()
