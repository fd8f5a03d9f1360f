"""The commands of `jaxmeta`: their options and their output."""

import dataclasses
import errno
import functools
import importlib.metadata
import os
import pathlib
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import rich.console
import rich.table
import tyro

from jaxmeta.cli import _console, _deadline, _joining, _parsing

_HELP = """\
jaxmeta: functional meta-learning in JAX.

  jaxmeta list [FILTER]                 list recipes with their published numbers
  jaxmeta train [RECIPE] [--out RUN]    train and test a recipe, or resume its run
  jaxmeta resume RUN [--steps N]        resume a run, or extend a finished one
  jaxmeta evaluate RUN                  test a run on fresh tasks
  jaxmeta adapt RUN FOLDER              adapt a trained run to your own images
  jaxmeta lake RUN --archive ZIP        Lake's one-shot challenge on Omniglot
  jaxmeta plot RUN                      draw learning and adaptation curves
  jaxmeta report RUN...                 write an HTML page about one or more runs

`jaxmeta COMMAND --help` shows its options, `jaxmeta train RECIPE --help` every setting.
"""


_NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS)
_READ_ONLY = (
    ". `evaluate` only reads a run; to plot, report, extend or resume it, copy its "
    "folder to where you may write."
)

_Path = tyro.conf.Positional[pathlib.Path]
_RunFolder = Annotated[_Path, tyro.conf.arg(metavar="RUN")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _RunOptions:
    """Options of training that are not part of the recipe."""

    coordinator: str | None = None
    """HOST:PORT of process 0 in multi-process training; "auto" on Slurm, GKE, TPU."""
    num_processes: int | None = None
    """Number of processes that train together."""
    process_id: int | None = None
    """Index of this process, from 0."""
    join_timeout: int = 60
    """Seconds to wait for the other processes."""
    tensorboard: bool = False
    """Also write the metrics for TensorBoard, to RUN/tensorboard."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResumeArgs(_RunOptions):
    """Resumes an interrupted run, or extends a finished one by more meta-steps."""

    run: _RunFolder
    """The run folder; its config.json holds the recipe."""
    steps: int | None = None
    """Total meta-steps; defaults to the recipe's. Schedules span this number."""


@dataclasses.dataclass(frozen=True)
class EvaluateArgs:
    """Tests a run's best checkpoint on fresh tasks, after each inner step."""

    run: _RunFolder
    """The run folder."""
    tasks: int | None = None
    """Number of tasks; defaults to the recipe's."""
    inner_steps: int | None = None
    """Inner steps; defaults to the recipe's."""
    seed: int | None = None
    """Seed of the tasks; defaults to the run's own test tasks."""


@dataclasses.dataclass(frozen=True)
class AdaptArgs:
    """Adapts a run to labelled images and predicts unlabelled ones.

    Labelled images are FOLDER/LABEL/*.png, one subfolder per label; unlabelled images
    are FOLDER/*.png.
    """

    run: _RunFolder
    """The run folder."""
    folder: Annotated[_Path, tyro.conf.arg(metavar="FOLDER")]
    """Folder of images."""
    inner_steps: int | None = None
    """Inner steps; defaults to the recipe's."""


@dataclasses.dataclass(frozen=True)
class LakeArgs:
    """Evaluates a run on Lake's one-shot classification challenge (Omniglot).

    The challenge has 20 runs of 20-way one-shot classification within an alphabet.
    """

    run: _RunFolder
    """The run folder."""
    archive: pathlib.Path
    """`all_runs.zip` from brendenlake/omniglot, or made by `tasks.make_lake_runs`."""


@dataclasses.dataclass(frozen=True)
class PlotArgs:
    """Plots a run: learning curve, adaptation curve, sample tasks."""

    run: _RunFolder
    """The run folder."""


@dataclasses.dataclass(frozen=True)
class ReportArgs:
    """Writes a self-contained HTML page that compares one or more runs."""

    runs: Annotated[
        tyro.conf.Positional[tuple[pathlib.Path, ...]], tyro.conf.arg(metavar="RUN...")
    ]
    """Run folders; the page is written to the first."""
    out: pathlib.Path | None = None
    """Path of the page, if not in the first run folder."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code (2 for errors the user can fix)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    commands: dict[str, Callable[[list[str]], None]] = {
        "list": _list,
        "train": _train,
        "resume": _resume,
        "evaluate": _evaluate,
        "adapt": _adapt,
        "lake": _lake,
        "plot": _plot,
        "report": _report,
    }
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_HELP, end="")
        return 0
    if argv[0] == "--version":
        print(importlib.metadata.version("jaxmeta"))
        return 0
    from jaxmeta.training import DivergedError

    try:
        if argv[0] not in commands:
            raise _parsing.UsageError(_parsing.unknown("command", argv[0], commands))
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            commands[argv[0]](argv[1:])
    except (ValueError, OSError, DivergedError, ImportError) as error:
        hint = _READ_ONLY if getattr(error, "errno", None) in _NO_ACCESS else ""
        print(f"jaxmeta: {' '.join(str(error).split())}{hint}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\njaxmeta: {_deadline.said(signal.SIGINT)}", file=sys.stderr)
        return 128 + signal.SIGINT
    except SystemExit as error:
        if error.code != 128 + signal.SIGTERM:
            raise
        print(f"jaxmeta: {_deadline.said(signal.SIGTERM)}", file=sys.stderr)
        return 128 + signal.SIGTERM
    return 0


def _show_warning(message: Any, category: type, *args: Any) -> None:
    """Prints our warnings in a line, without the place in our code."""
    if issubclass(category, UserWarning):
        print(f"jaxmeta: {' '.join(str(message).split())}", file=sys.stderr)
    else:
        print(warnings.formatwarning(message, category, *args[:2]), file=sys.stderr)


def _list(argv: list[str]) -> None:
    from jaxmeta import recipes

    if argv and argv[0] in ("-h", "--help"):
        print(_HELP, end="")
        return
    if len(argv) > 1:
        raise _parsing.UsageError(
            f"`jaxmeta list` takes one filter, got {' '.join(argv)}."
        )
    word = argv[0].lower() if argv else ""
    found = {
        name: recipe
        for name, recipe in recipes.RECIPES.items()
        if word in f"{name} {recipe.summary}".lower()
    }
    if not found:
        raise _parsing.UsageError(f"No recipe matches {argv[0]!r}: see `jaxmeta list`.")
    marks = {recipes.DEFAULT: " (default)"}
    console = rich.console.Console()
    if not console.is_terminal:  # One line each, for `grep` and `cut`.
        for name, recipe in found.items():
            print(
                name + marks.get(name, ""), recipe.summary, recipe.published, sep="\t"
            )
        return
    name_column = rich.table.Column("recipe", no_wrap=True)
    table = rich.table.Table(name_column, "what", "published", box=None, pad_edge=False)
    for name, recipe in found.items():
        table.add_row(name + marks.get(name, ""), recipe.summary, recipe.published)
    console.print(table)


def _train(argv: list[str]) -> None:
    from jaxmeta import recipes, runs

    name = recipes.DEFAULT
    if argv and not argv[0].startswith("-"):
        name, *argv = argv
    elif late := set(argv) & set(recipes.RECIPES):
        raise _parsing.UsageError(
            f"The recipe comes first: `jaxmeta train {late.pop()} ...`."
        )
    if name not in recipes.RECIPES:
        raise _parsing.UsageError(_parsing.unknown("recipe", name, recipes.RECIPES))
    recipe = recipes.RECIPES[name]

    # Defined here so that the help shows this recipe's defaults beside `--out`.
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class TrainArgs(_RunOptions):
        recipe: recipes.Recipe | recipes.OptimizerRecipe
        out: pathlib.Path = pathlib.Path("runs") / name
        """The run folder; resumed if interrupted."""

    args = _parsing.parse(
        tyro.conf.AvoidSubcommands[tyro.conf.OmitArgPrefixes[TrainArgs]],
        argv,
        f"train {name}",
        default=TrainArgs(recipe=recipe),
        description=f"{recipe.summary}. Published: {recipe.published or 'nothing'}. "
        "Other recipes: `jaxmeta list`.",
    )
    train = functools.partial(runs.train, name, args.recipe, args.out)
    _run(train, runs.Run(args.out, name, args.recipe), args)


def _resume(argv: list[str]) -> None:
    from jaxmeta import runs

    args = _parsing.parse(ResumeArgs, argv, "resume")
    run = runs.read(args.run)
    steps = run.recipe.steps if args.steps is None else args.steps
    recipe = dataclasses.replace(run.recipe, steps=steps)
    resume = functools.partial(runs.resume, args.run, steps=args.steps)
    _run(resume, run._replace(recipe=recipe), args)


def _run(train: Callable[..., Any], run: Any, options: _RunOptions) -> None:
    """Trains with a progress bar, then prints the test and draws the plots."""
    processes = options.coordinator, options.num_processes, options.process_id
    _joining.check_options(*processes)
    _start_jax()
    with _deadline.deadline(is_coordinator=options.process_id == 0):
        is_first = _joining.join(*processes, options.join_timeout)
        with _joining.leaving(options.coordinator):
            if is_first:
                _train_visibly(train, run, options)
            else:
                train()


def _train_visibly(train, run, options):
    from jaxmeta import training

    print(f"{run.name}: {run.recipe.summary}. Run folder: {run.directory}")
    reports: list[training.Report] = []
    if options.tensorboard:
        reports.append(training.tensorboard(run.directory / "tensorboard"))

    def report(record):
        for each in reports:
            each(record)

    if _is_finished(run):
        summary = train()
        print(
            f"finished already: `jaxmeta resume {run.directory} --steps N` extends it"
        )
    else:
        path = run.directory / "metrics.jsonl"
        records = training.read_metrics(path) if path.exists() else []
        completed = records[-1]["step"] if records else 0
        with _console.Progress(run.recipe.steps, completed) as progress:
            reports.append(progress.report)
            summary = train(report=report)
    _console.print_test(summary["test"])
    if summary["published"]:
        print(f"published: {summary['published']}")
    print(f"{summary['steps']} meta-steps in {summary['train_seconds']:.0f} s")
    _draw(run.directory)
    for path in sorted(run.directory.rglob("*")):
        if (
            path.suffix in (".json", ".jsonl", ".png")
            and "checkpoints" not in path.parts
        ):
            print(path)
    print(run.directory / "checkpoints")


def _is_finished(run: Any) -> bool:
    from jaxmeta import runs

    if not (run.directory / "summary.json").exists():
        return False
    return runs.read(run.directory).recipe.steps == run.recipe.steps


def _evaluate(argv: list[str]) -> None:
    args = _parsing.parse(EvaluateArgs, argv, "evaluate")
    _start_jax()
    from jaxmeta import runs

    is_run = (args.run / "config.json").exists()
    if is_run and not (args.run / "summary.json").exists():
        print("training is unfinished: testing the best checkpoint so far")
    _console.print_test(
        runs.evaluate(
            args.run, num_tasks=args.tasks, inner_steps=args.inner_steps, seed=args.seed
        )
    )


def _adapt(argv: list[str]) -> None:
    args = _parsing.parse(AdaptArgs, argv, "adapt")
    _start_jax()
    from jaxmeta import runs

    for found in runs.adapt(args.run, args.folder, inner_steps=args.inner_steps):
        print(f"{found.path}  {found.label}  {found.probability:.3f}")


def _lake(argv: list[str]) -> None:
    args = _parsing.parse(LakeArgs, argv, "lake")
    _start_jax()
    from jaxmeta import runs

    found = runs.lake(args.run, args.archive)
    for name, result in {"": found, "inductive ": found.get("inductive")}.items():
        if result is not None:
            print(f"{name}error {result['error']:.1f} ± {result['half_width']:.1f} %")
    published = (f"{name} {error} %" for name, error in found["published"].items())
    print(f"published: {', '.join(published)}")


def _plot(argv: list[str]) -> None:
    args = _parsing.parse(PlotArgs, argv, "plot")
    _start_jax()
    from jaxmeta import runs

    for path in runs.plot(args.run):
        print(path)


def _report(argv: list[str]) -> None:
    args = _parsing.parse(ReportArgs, argv, "report")
    _start_jax()
    from jaxmeta import report

    print(report.write_report(args.runs, args.out))


def _draw(run: pathlib.Path) -> None:
    """Plots a finished run, if matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        print("no plots: pip install matplotlib, then jaxmeta plot", run)
        return
    from jaxmeta import runs

    runs.plot(run)


def _start_jax() -> None:
    """Makes every core a device and caches compiled programs on disk."""
    import jax

    from jaxmeta import training

    training.use_cpu_devices()
    if not jax.config.jax_compilation_cache_dir:  # pyright: ignore
        cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
        jax.config.update("jax_compilation_cache_dir", str(cache / "jaxmeta" / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
