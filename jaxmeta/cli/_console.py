"""Terminal output: a progress bar and tables of results."""

from typing import Any

import rich.console
import rich.progress
import rich.table


def print_test(test: dict[str, Any]) -> None:
    """Prints test results, one row per number of inner steps.

    Learned optimizers get one row, and so does each baseline.
    """
    if "optimizers" in test:
        _print_optimizers(test)
        return
    inductive = test.get("inductive", {})
    columns = {
        name: test[name] for name in test if name not in ("num_tasks", "inductive")
    }
    columns |= {f"inductive {name}": value for name, value in inductive.items()}
    num_rows = len(test["loss"]["mean"])
    makes_steps = num_rows > 1
    names = ("inner", *columns) if makes_steps else columns
    table = rich.table.Table(*names, box=None, pad_edge=False)
    for k in range(num_rows):
        cells = (
            _format(n, c["mean"][k], c["half_width"][k]) for n, c in columns.items()
        )
        table.add_row(*((str(k),) if makes_steps else ()), *cells)
    console = rich.console.Console()
    after = " after inner steps" if makes_steps else ""
    console.print(f"test over {test['num_tasks']} tasks: mean ± 95 % interval{after}")
    if inductive:
        console.print("inductive: normalised by the support set, one query at a time")
    console.print(table)


def _print_optimizers(test: dict[str, Any]) -> None:
    table = rich.table.Table(
        "optimizer", "rate", "final loss", "median", "summed loss", box=None
    )
    for name, found in test["optimizers"].items():
        final, summed = found["final"], found["summed"]
        table.add_row(
            name,
            f"{found['rate']:g}" if "rate" in found else "",
            _format("loss", final["mean"], final["half_width"]),
            f"{final['median']:.4f}",
            f"{summed['mean']:.2f} ± {summed['half_width']:.2f}",
        )
    console = rich.console.Console()
    console.print(
        f"test over {test['num_problems']} problems, {test['num_steps']} updates each: "
        "mean ± 95 % interval"
    )
    console.print(table)


def _format(name: str, mean: float, half_width: float) -> str:
    if name.endswith("accuracy"):
        return f"{100 * mean:.2f} ± {100 * half_width:.2f} %"
    return f"{mean:.4f} ± {half_width:.4f}"


class Progress:
    """A progress bar with live metrics; plain lines if stdout is not a terminal."""

    def __init__(self, num_steps: int, completed: int = 0):
        self._console = rich.console.Console()
        self._total = num_steps
        self._validated = ""
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.completed}/{task.total}"),
            rich.progress.BarColumn(),
            rich.progress.TextColumn("{task.description}"),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(
            "compiling", total=num_steps, completed=completed
        )

    def __enter__(self) -> "Progress":
        self._bar.start()
        if not self._console.is_terminal:
            print("compiling", flush=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def report(self, record: Any) -> None:
        """Shows one record of `metrics.jsonl`."""
        shown = [f"loss {record['loss']:.4f}"]
        if "accuracy" in record:
            shown.append(f"accuracy {record['accuracy']:.3f}")
        if record.get("excluded"):  # Non-finite tasks or runs.
            shown.append(f"excluded {record['excluded']:.1%}")
        is_validated = "validation_loss" in record
        if is_validated:
            self._validated = f"validation loss {record['validation_loss']:.4f}"
            if "validation_accuracy" in record:
                self._validated += f" accuracy {record['validation_accuracy']:.3f}"
        text = "  ".join([*shown, self._validated])
        is_last = record["step"] == self._total
        described = "testing on held-out tasks" if is_last else text
        self._bar.update(self._task, completed=record["step"], description=described)
        if is_validated and not self._console.is_terminal:
            print(f"{record['step']}/{self._total}  {text}", flush=True)
        if is_last and not self._console.is_terminal:
            print("testing on held-out tasks", flush=True)
