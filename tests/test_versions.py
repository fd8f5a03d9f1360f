"""The lower bounds of the dependencies are the versions that CI tests."""

import pathlib
import re
import tomllib

ROOT = pathlib.Path(__file__).parents[1]


def test_the_oldest_versions_tested_are_the_lower_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = dict(line.split(">=") for line in project["dependencies"])
    pinned = dict(
        re.findall(r"^(\w+)==(.+)$", (ROOT / "tests/oldest.txt").read_text(), re.M)
    )
    assert pinned.pop("jaxlib") == pinned["jax"]
    assert pinned == {name: bounds[name] for name in ("jax", "flax", "optax")}
