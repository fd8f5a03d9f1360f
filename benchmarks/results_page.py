"""Writes what was measured into docs/results.md, and the headlines into README.md.

    python -m benchmarks.results_page

Ours are read from `results/`: rerun a benchmark, then this. A test fails where the
pages and the results differ.
"""

import json
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- results -->\n", "<!-- end of results -->"


class Row(NamedTuple):
    """An experiment: what the paper says, what others got again, and what we got."""

    algorithm: str
    experiment: str
    published: str
    ours: Callable[[], str]
    reruns: str = ""
    is_headline: bool = False


# Where numbers are read from.


def read(name: str):
    return json.loads((RESULTS / f"{name}.json").read_text())


def _over_seeds(found, pick):
    """Means over seeds of a test's mean and of its interval."""
    values = [pick(run) for run in found]
    return tuple(np.mean([v[k] for v in values], 0) for k in ("mean", "half_width"))


def accuracy(recipe: str, *tests: str) -> Callable[[], str]:
    """Transductive accuracy after the last inner step, and how long a run took."""

    def ours():
        runs = read(f"recipes/{recipe}")["runs"]
        shown = []
        for test in tests or ("test",):
            mean, interval = _over_seeds(runs, lambda run, t=test: run[t]["accuracy"])
            shown.append(f"{100 * mean[-1]:.2f} ± {100 * interval[-1]:.2f}")
        minutes = np.mean([run["train_seconds"] for run in runs]) / 60
        return f"{', '.join(shown)} % ({minutes:.0f} min)"

    return ours


def errors(recipe: str, steps=(1, 5, 10)) -> Callable[[], str]:
    """Squared error after some numbers of inner steps."""

    def ours():
        runs = read(f"recipes/{recipe}")["runs"]
        return _numbers(_over_seeds(runs, lambda run: run["test"]["loss"]), steps, 2)

    return ours


def sinusoid(names, shots: str) -> Callable[[], str]:
    """Squared error of `sinusoids.py`'s learners after one step."""

    def ours():
        found = read("sinusoids")["results"]
        seeds = [found[name]["test_shots"][shots]["seeds"] for name in names]
        means, intervals = zip(
            *(_over_seeds(s, lambda s: s) for s in seeds), strict=True
        )
        return _numbers((means, intervals), range(len(names)), 2)

    return ours


def optimizer(panel: str, *steps: int, best=False) -> Callable[[], str]:
    """Loss of a learned optimizer after some updates, or of the best other one."""

    def ours():
        found = read(f"l2l_panels/{panel}")
        learned = _over_seeds(found["learned"], lambda run: run["loss"])
        if not best:
            summed, _ = _over_seeds(found["learned"], lambda run: run["summed"])
            is_quadratic = panel.startswith("quadratic")
            shown = _numbers(learned, steps, 4 if is_quadratic else 3)
            return shown + (f", summed {summed:.1f}" if is_quadratic else "")
        name, curve = min(
            found["others"].items(), key=lambda item: item[1]["loss"]["mean"][steps[0]]
        )
        loss = curve["loss"]
        shown = _numbers((loss["mean"], loss["half_width"]), steps, 3)
        return f"{shown} ({name.upper() if len(name) < 4 else name})"

    return ours


def _numbers(found, steps, digits):
    means, intervals = found
    return " / ".join(
        f"{means[k]:.{digits}f} ± {intervals[k]:.{digits}f}" for k in steps
    )


def long_run(name: str, network="sigmoid") -> Callable[[], str]:
    def ours():
        found = read("long_runs")[network][name]
        return f"{found['loss']['10000']:.2f}, {found['lost']:.0%} of runs diverge"

    return ours


def navigation() -> str:
    runs = read("navigation")["results"]["MAML"]
    return _numbers(_over_seeds(runs, lambda run: run), range(4), 1)


def lake() -> str:
    found = read("lake/prototypical-omniglot-lake")["original"]
    alone = found["inductive"]
    return (
        f"{found['error']:.1f} ± {found['half_width']:.1f} %; queries one at a time "
        f"{alone['error']:.1f} ± {alone['half_width']:.1f} %"
    )


def zero_shot(learner: str) -> Callable[[], str]:
    def ours():
        mean = read("zero_shot")["synthetic, 40 seen classes"]["mean"]
        return f"{100 * mean[learner]:.1f} % (ESZSL {100 * mean['eszsl']:.1f} %)"

    return ours


# The rows.

PAPERS = {
    "maml": "[Finn et al. 2017](https://arxiv.org/abs/1703.03400)",
    "maml, first order": "[Nichol et al. 2018](https://arxiv.org/abs/1803.02999)",
    "reptile": "[Nichol et al. 2018](https://arxiv.org/abs/1803.02999)",
    "meta_sgd": "[Li et al. 2017](https://arxiv.org/abs/1707.09835)",
    "anil": "[Raghu et al. 2020](https://arxiv.org/abs/1909.09157)",
    "boil": "[Oh et al. 2021](https://arxiv.org/abs/2008.08882)",
    "maml_plus_plus": "[Antoniou et al. 2019](https://arxiv.org/abs/1810.09502)",
    "cavia": "[Zintgraf et al. 2019](https://arxiv.org/abs/1810.03642)",
    "imaml": "[Rajeswaran et al. 2019](https://arxiv.org/abs/1909.04630)",
    "meta_curvature": "[Park and Oliva 2019](https://arxiv.org/abs/1902.03356)",
    "meta_lstm": "[Ravi and Larochelle 2017](https://openreview.net/forum?id=rJY0-Kcll)",
    "proto_maml": "[Triantafillou et al. 2020](https://arxiv.org/abs/1903.03096)",
    "prototypical": "[Snell et al. 2017](https://arxiv.org/abs/1703.05175)",
    "matching": "[Vinyals et al. 2016](https://arxiv.org/abs/1606.04080)",
    "siamese": (
        "[Koch et al. 2015](https://www.cs.cmu.edu/~rsalakhu/papers/oneshot1.pdf)"
    ),
    "relation": "[Sung et al. 2018](https://arxiv.org/abs/1711.06025)",
    "ridge": "R2-D2, [Bertinetto et al. 2019](https://arxiv.org/abs/1805.08136)",
    "svm": "MetaOptNet, [Lee et al. 2019](https://arxiv.org/abs/1904.03758)",
    "subspace": "DSN, [Simon et al. 2020](https://doi.org/10.1109/CVPR42600.2020.00419)",
    "feat": "[Ye et al. 2020](https://arxiv.org/abs/1812.03664)",
    "rl.maml": "[Finn et al. 2017](https://arxiv.org/abs/1703.03400)",
    "optimizers.lstm": "[Andrychowicz et al. 2016](https://arxiv.org/abs/1606.04474)",
    "optimizers.lstm_gac": "the same, Appendix D",
    "optimizers.ntm_bfgs": "the same, Appendix D",
    "optimizers.rnnprop": "[Lv et al. 2017](https://arxiv.org/abs/1703.03633)",
}

_5W1S, _20W1S = "Omniglot 5-way 1-shot", "Omniglot 20-way 1-shot"
_20_AND_5 = "Omniglot 20-way, 5-way 1-shot"
_WAYS = ("test", "test_5_ways")

ROWS = [
    Row("maml", _5W1S, "98.7 ± 0.4 %", accuracy("maml-omniglot-5w1s"),
        "99.1, 99.6, 98.1 %", True),
    Row("maml", "the same without convolutions", "89.7 ± 1.1 %",
        accuracy("maml-mlp-omniglot-5w1s")),
    Row("maml", _20W1S, "95.8 ± 0.3 %", accuracy("maml-omniglot-20w1s"),
        "91.6, about 90 %"),
    Row("maml", "sinusoid, 5 shots, squared error after 1 / 5 / 10 steps",
        "0.67 / 0.38 / 0.35", errors("maml-sinusoid")),
    Row("maml, first order", _5W1S, "98.3 ± 0.5 %",
        accuracy("fomaml-omniglot-5w1s"), "", True),
    Row("maml, first order", "sinusoid, as above", "–", errors("fomaml-sinusoid")),
    Row("reptile", _5W1S, "97.68 ± 0.04 %", accuracy("reptile-omniglot-5w1s"), "",
        True),
    Row("reptile", _20W1S, "89.43 ± 0.14 %", accuracy("reptile-omniglot-20w1s")),
    Row("meta_sgd", _5W1S, "99.53 ± 0.26 %", accuracy("meta-sgd-omniglot-5w1s"), "",
        True),
    Row("meta_sgd", "sinusoids of random frequency, 5 shots, squared error",
        "0.90 ± 0.16", sinusoid(["Meta-SGD, 5 shots"], "5")),
    Row("anil", _5W1S, "–", accuracy("anil-omniglot-5w1s")),
    Row("anil", _20W1S, "96.2 ± 0.5 %", accuracy("anil-omniglot-20w1s"), "", True),
    Row("boil", _5W1S, "–", accuracy("boil-omniglot-5w1s"), "", True),
    Row("maml_plus_plus", _5W1S, "99.47 %", accuracy("maml-plus-plus-omniglot-5w1s"),
        "", True),
    Row("maml_plus_plus", _20W1S, "97.65 ± 0.05 %, five models",
        accuracy("maml-plus-plus-omniglot-20w1s"), "96.65 ± 0.06 %, five models"),
    Row("cavia", "sinusoid, 1 / 2 / 5 context parameters, squared error",
        "0.84 / 0.21 / 0.19",
        sinusoid([f"CAVIA, {n} context" for n in (1, 2, 5)], "10"), "", True),
    Row("cavia", _5W1S, "–", accuracy("cavia-omniglot-5w1s")),
    Row("imaml", _5W1S, "99.16 ± 0.35 %", accuracy("imaml-omniglot-5w1s"), "", True),
    Row("meta_curvature", _5W1S, "99.97 %", accuracy("meta-curvature-omniglot-5w1s"),
        "", True),
    Row("meta_lstm", _5W1S, "–", accuracy("meta-lstm-omniglot-5w1s"), "", True),
    Row("proto_maml", _5W1S, "–", accuracy("proto-maml-omniglot-5w1s"), "", True),
    Row("prototypical", _20_AND_5, "96.0, 98.8 %",
        accuracy("prototypical-omniglot-1s", *_WAYS), "94.9, 98.4 %; 95.1 %", True),
    Row("prototypical", "the same with 5 shots, trained with one", "98.9, 99.7 %",
        accuracy("prototypical-omniglot-1s", "test_5_shots", "test_5_ways_5_shots"),
        "98.6, 99.6 %, trained with five"),
    Row("prototypical", "Omniglot, Lake's one-shot runs within alphabets, error",
        "13.7 %", lake),
    Row("prototypical", "synthetic attributes, zero-shot on 20 unseen classes", "–",
        zero_shot("prototypical")),
    Row("matching", _20_AND_5, "93.8, 98.1 %",
        accuracy("matching-omniglot-1s", *_WAYS), "93.5 to 96.15 %", True),
    Row("siamese", _20_AND_5, "88.2, 97.3 %", accuracy("siamese-omniglot-1s", *_WAYS),
        "", True),
    Row("relation", _20_AND_5, "97.6 ± 0.2, 99.6 ± 0.2 %",
        accuracy("relation-omniglot-1s", *_WAYS), "", True),
    Row("relation", "synthetic attributes, zero-shot on 20 unseen classes", "–",
        zero_shot("relation")),
    Row("ridge", _20_AND_5, "94.7, 98.55 %", accuracy("ridge-omniglot-1s", *_WAYS), "",
        True),
    Row("svm", _20_AND_5, "–", accuracy("svm-omniglot-1s", *_WAYS), "", True),
    Row("subspace", _20_AND_5, "–", accuracy("subspace-omniglot-1s", *_WAYS), "", True),
    Row("feat", _20_AND_5, "–", accuracy("feat-omniglot-1s", *_WAYS), "", True),
    Row("rl.maml", "2-D navigation, return after 0 / 1 / 2 / 3 updates",
        "-40.4 / -11.7 / -3.3 / -3.2", navigation, "", True),
    Row("optimizers.lstm", "quadratics, loss after 100 updates", "0.0387, summed 12.4",
        optimizer("quadratic", 100), "", True),
    Row("optimizers.lstm", "the best other optimizer", "0.0511 (Adam)",
        optimizer("quadratic", 100, best=True)),
    Row("optimizers.lstm", "MNIST, 20 units, after 100 / 200 updates", "0.245 / 0.215",
        optimizer("mnist-200-steps", 100, 200)),
    Row("optimizers.lstm", "the best other optimizer", "0.324 / 0.252 (NAG)",
        optimizer("mnist-200-steps", 100, 200, best=True)),
    Row("optimizers.lstm", "MNIST, 20 units, meta-trained on through whole runs",
        "0.245 / 0.215", optimizer("second_phase/mnist-200-steps", 100, 200)),
    Row("optimizers.lstm", "MNIST, 40 units, the same, after 100 updates", "0.192",
        optimizer("second_phase/mnist-40-units", 100)),
    Row("optimizers.lstm", "CIFAR-10 (JPEG), after 100 updates", "1.426",
        optimizer("cifar10", 100)),
    Row("optimizers.lstm", "the best other optimizer", "1.637",
        optimizer("cifar10", 100, best=True)),
    Row("optimizers.lstm", "the same, 1,000 updates", "0.822",
        optimizer("cifar10-1000-steps", 1000)),
    Row("optimizers.lstm", "the best other optimizer", "0.793",
        optimizer("cifar10-1000-steps", 1000, best=True)),
    Row("optimizers.lstm", "MNIST, after 10,000 updates (`lstm-mnist-enhanced`)",
        "does not diverge ([Chen et al. 2020](https://arxiv.org/abs/2010.09089))",
        long_run("lstm-mnist-enhanced")),
    Row("optimizers.lstm", "the same with ReLU", "does not diverge",
        long_run("lstm-mnist-enhanced", "ReLU")),
    Row("optimizers.lstm_gac", "quadratics, as above", "–",
        optimizer("quadratic-averaging-cells", 100)),
    Row("optimizers.ntm_bfgs", "quadratics, as above", "–",
        optimizer("quadratic-ntm-bfgs", 100)),
    Row("optimizers.rnnprop", "MNIST, 20 units, after 100 updates", "–",
        optimizer("mnist-rnnprop", 100)),
    Row("optimizers.rnnprop", "the same with ReLU, unseen in training", "–",
        optimizer("mnist-relu-rnnprop", 100)),
    Row("optimizers.rnnprop", "MNIST, after 10,000 updates", "–",
        long_run("rnnprop-mnist-enhanced")),
]  # fmt: skip

PAGE = """\
# Results

<!-- Written by `python -m benchmarks.results_page`: change that, or `results/`. -->

Published numbers, reruns of the papers' code by others (from issues and READMEs), and
ours. Minutes are meta-training time on one CPU core. ± is the 95 % interval over test
tasks, averaged over seeds where there are several. Accuracies on Omniglot are
transductive (each set is normalised by its own batch statistics), as most published
ones are; [Reproduced numbers](benchmarks/reproduce.md) has the inductive numbers, every
protocol (split, rotations, queries, seeds), and what explains results that we do not
match. `jaxmeta train RECIPE` repeats a run.

| algorithm | experiment | published | reruns | ours |
|---|---|---|---|---|
"""


def page() -> str:
    """The text of docs/results.md."""
    lines, last = [], None
    for row in ROWS:
        paper = PAPERS[row.algorithm]
        name = f"{_name(row)}, {paper}" if row.algorithm != last else ""
        last = row.algorithm
        cells = (name, row.experiment, row.published, row.reruns or "–", row.ours())
        lines.append(f"| {' | '.join(cells)} |")
    return PAGE + "\n".join(lines) + "\n"


def _name(row: Row) -> str:
    code, comma, rest = row.algorithm.partition(", ")
    return f"`{code}`{comma}{rest}"


def headlines() -> str:
    """README's table: one row for each algorithm."""
    lines = ["| algorithm | experiment | published | ours |", "|---|---|---|---|"]
    for row in ROWS:
        if row.is_headline:
            cells = (_name(row), row.experiment, row.published, row.ours())
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def readme(text: str) -> str:
    """README with the headlines put in."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + headlines() + END + after


def main() -> None:
    (ROOT / "docs" / "results.md").write_text(page())
    path = ROOT / "README.md"
    path.write_text(readme(path.read_text()))


if __name__ == "__main__":
    main()
