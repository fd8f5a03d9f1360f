"""Writes the report."""

import base64
import importlib.resources
import io
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jaxmeta.report import _contents, _figures, _hardest


def write_report(
    directories: Sequence[str | os.PathLike[str]],
    path: str | os.PathLike[str] | None = None,
) -> pathlib.Path:
    """Writes one self-contained HTML report of run folders.

    Args:
      directories: run folders; the others are compared with the first.
      path: path of the report; None is `report.html` in the first folder.

    Returns:
      The path of the report.

    Raises:
      ValueError: if a folder holds no run, has no metrics yet, or is damaged.
      OSError: if it cannot be written.
      ImportError: if matplotlib or jinja2 is not installed.
    """
    try:
        import jinja2
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "Reports require matplotlib and jinja2: pip install matplotlib jinja2"
        ) from error
    if not directories:
        raise ValueError("`directories` must have at least one run folder, got none.")
    found = [_contents.read(pathlib.Path(directory)) for directory in directories]
    names = [contents.run.name for contents in found]
    if len(set(names)) < len(names):
        found = [
            contents._replace(title=f"{contents.run.name} ({contents.run.directory})")
            for contents in found
        ]
    target = found[0].run.directory / "report.html" if path is None else path
    target = pathlib.Path(target)
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    source = importlib.resources.files("jaxmeta.report") / "page.html"
    page = environment.from_string(source.read_text()).render(
        runs=[_sections(contents) for contents in found],
        settings=_compared(found),
        curves=[
            (title, _as_svg(figure))
            for title, figure in _figures.compare(found).items()
        ],
    )
    new = target.with_name(target.name + ".tmp")
    new.write_text(page, encoding="utf-8")
    os.replace(new, target)
    return target


def _compared(found: Sequence[_contents.Contents]) -> list[dict[str, Any]]:
    """One row per setting, one value per run; differing settings come first."""
    names = list(
        dict.fromkeys(name for contents in found for name in contents.settings)
    )
    rows = []
    for name in names:
        values = [_text(contents.settings.get(name, "")) for contents in found]
        rows.append({"name": name, "values": values, "differs": len(set(values)) > 1})
    return sorted(rows, key=lambda row: not row["differs"])


def _sections(contents: _contents.Contents) -> dict[str, Any]:
    """The sections about one run."""
    recipe, summary = contents.run.recipe, contents.summary
    environment = {
        "run folder": str(contents.run.directory),
        "meta-steps": f"{contents.records[-1]['step']:,.0f} of {recipe.steps:,}",
        "training time": f"{sum(r['seconds'] for r in contents.records):,.0f} s",
    }
    if summary:
        versions = ", ".join(f"{k} {v}" for k, v in summary["versions"].items())
        environment |= {
            "best checkpoint": f"at meta-step {summary['best_step']:,}",
            "device": summary["device"],
            "finished": summary["date"],
            "versions": versions,
        }
    hardest = _hardest.hardest_tasks(contents.run)
    return {
        "title": contents.title,
        "summary": recipe.summary,
        "published": recipe.published,
        "protocol": recipe.describe_protocol(),
        "is_finished": bool(summary),
        "result": _result(summary),
        "environment": environment,
        "figures": [
            (title, _as_svg(figure))
            for title, figure in _figures.of_run(contents).items()
        ],
        "hardest": None
        if hardest is None
        else {"caption": hardest.caption, "picture": _as_png(hardest.figure)},
    }


def _result(summary: Mapping[str, Any]) -> list[list[str]]:
    """The test results as a table, header first."""
    if not summary:
        return []
    test = summary["test"]
    if "optimizers" in test:
        rows = [["optimizer", "rate", "final loss", "summed loss"]]
        for name, found in test["optimizers"].items():
            numbers = (found["final"], found["summed"])
            rate = f"{found['rate']:g}" if "rate" in found else ""
            rows.append([name, rate, *(_number("loss", x) for x in numbers)])
        return rows
    columns = {k: v for k, v in test.items() if k not in ("num_tasks", "inductive")}
    inductive = test.get("inductive", {})
    columns |= {f"inductive {name}": value for name, value in inductive.items()}
    rows = [["inner steps", *columns]]
    for k in range(len(test["loss"]["mean"])):
        cells = [
            _number(name, {part: x[part][k] for part in ("mean", "half_width")})
            for name, x in columns.items()
        ]
        rows.append([str(k), *cells])
    if len(rows) == 2:  # No inner steps.
        rows = [row[1:] for row in rows]
    return rows


def _number(name: str, found: Mapping[str, float]) -> str:
    mean, half_width = found["mean"], found["half_width"]
    if name.endswith("accuracy"):
        return f"{100 * mean:.2f} ± {100 * half_width:.2f} %"
    return f"{mean:.4g} ± {half_width:.2g}"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return "–" if value is None else str(value)


def _as_svg(figure: Any) -> str:
    return _as_url(figure, "svg", "image/svg+xml")


def _as_png(figure: Any) -> str:
    return _as_url(figure, "png", "image/png")


def _as_url(figure, kind, mime):
    file = io.BytesIO()
    figure.savefig(file, format=kind, dpi=150)
    return f"data:{mime};base64,{base64.b64encode(file.getvalue()).decode()}"
