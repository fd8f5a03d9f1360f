"""Lake's one-shot challenge without learning: a check of the runs and of the protocol.

    python -m benchmarks.lake --archive all_runs.zip
    python -m benchmarks.lake --archive all_runs.zip --make images_evaluation.zip
    python -m benchmarks.lake --archive all_runs.zip --run runs/RUN

Errors over the trials of all runs, 20 x 20, of the modified Hausdorff distance
(Dubuisson and Jain, ICPR 1994) and of the pixels' Euclidean distance. `--make` first
makes an archive of other runs from the evaluation alphabets. `--run` judges a trained
run instead, as `jaxmeta lake` does.
"""

import argparse
import hashlib
import json
import pathlib

import numpy as np
from scipy import spatial

from benchmarks import _timing
from jaxmeta import runs, tasks

RESULTS = pathlib.Path(__file__).parent / "results" / "lake"
# Of python/one-shot-classification/all_runs.zip in brendenlake/omniglot.
ORIGINAL = "437c1eeab0af8484112e1b4cc0f3d541ec727f7c47b9b202da738af9dfd6c325"
# Lake et al. 2015 (demo_classification.py there); Koch et al. 2015, Table 2.
PUBLISHED = {"modified-hausdorff": 38.8, "pixels": 78.3}


def inked_points(drawing):
    """Coordinates of ink in a drawing [H, W, 1], minus their mean: [N, 2]."""
    points = np.argwhere(np.asarray(drawing)[..., 0] > 0.5).astype(float)
    return points - points.mean(0, keepdims=True)


def modified_hausdorff(first, second):
    """The larger of the two mean distances to the nearest point of the other set."""
    trees = [spatial.cKDTree(points) for points in (first, second)]
    return _between(*trees)


def _between(first, second):
    there, back = second.query(first.data)[0], first.query(second.data)[0]
    return max(there.mean(), back.mean())


def hausdorff_distances(support, query):
    """Distances [Q, N] between drawings [Q, H, W, 1] and [N, H, W, 1]."""
    queries, supports = (
        [spatial.cKDTree(inked_points(drawing)) for drawing in drawings]
        for drawings in (query, support)
    )
    return np.array([[_between(q, s) for s in supports] for q in queries])


def pixel_distances(support, query):
    """Euclidean distances [Q, N] between drawings."""
    flat = [np.asarray(x).reshape(len(x), -1) for x in (query, support)]
    return spatial.distance.cdist(*flat)


def errors(lake_runs, distances):
    """Percentage of each run's queries whose nearest support is of another class."""
    found = []
    for support, query in lake_runs:
        nearest = distances(support.inputs, query.inputs).argmin(1)
        predicted = np.asarray(support.targets)[nearest].argmax(1)
        found.append(100 * np.mean(predicted != np.asarray(query.targets).argmax(1)))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archive", type=pathlib.Path, required=True)
    parser.add_argument("--make", type=pathlib.Path, metavar="ZIP")
    parser.add_argument("--run", type=pathlib.Path, help="a trained run's folder")
    parser.add_argument("--seed", type=int, default=0, help="of --make")
    args = parser.parse_args()
    if args.make:
        tasks.make_lake_runs(args.make, args.archive, seed=args.seed)
    digest = hashlib.sha256(args.archive.read_bytes()).hexdigest()
    which = "original" if digest == ORIGINAL else "made"
    if args.run:
        _record_run(args.run, args.archive, which)
        return
    large = tasks.load_lake_runs(args.archive, size=105)
    small = tasks.load_lake_runs(args.archive, size=28)
    _record("modified-hausdorff", which, digest, errors(large, hausdorff_distances))
    _record("pixels", which, digest, errors(small, pixel_distances))


def _record_run(directory, archive, which):
    """Prints a trained run's result and puts it beside that on the other runs."""
    name = runs.read(directory).name
    found = runs.lake(directory, archive)
    print(f"{name}, {which} runs: {json.dumps(found)}")
    path = RESULTS / f"{name}.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    result[which] = found | {"environment": _timing.environment()}
    path.write_text(json.dumps(result, indent=1) + "\n")


def _record(method, which, digest, per_run):
    """Prints one result and puts it beside that on the other runs."""
    mean = float(np.mean(per_run))
    print(f"{method}, {which} runs: {mean:.2f} % (published {PUBLISHED[method]} %)")
    path = RESULTS / f"{method}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    result = json.loads(path.read_text()) if path.exists() else {}
    result["published_error"] = PUBLISHED[method]
    result[which] = {
        "error": mean,
        "error_per_run": per_run,
        "archive_sha256": digest,
        "environment": _timing.environment(("jaxmeta", "numpy", "scipy", "pillow")),
    }
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
