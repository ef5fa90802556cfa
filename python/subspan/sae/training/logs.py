"""What a run says while it works: a table, lines of JSON, a bar, and other people's dashboards."""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from subspan import _checks
from subspan.errors import UnsupportedError
from subspan.report.files import write_atomic

__all__ = ["LOGGERS", "FileLog", "Log", "bar", "make_logs", "words"]

LOGGERS = ("tensorboard", "wandb")

Metrics = Mapping[str, float]


class Log(Protocol):
    """Takes the metrics of a step; ``step`` is one of them."""

    def write(self, metrics: Metrics) -> None:
        """Take one line."""

    def close(self) -> None:
        """Finish."""


class FileLog:
    """``metrics.jsonl`` and ``metrics.csv`` of a folder, line by line.

    Parameters
    ----------
    folder : path
    step : int
        Lines of later steps are dropped: of a run that went on beyond its last checkpoint.
    """

    def __init__(self, folder: Path, *, step: int = 0) -> None:
        self.lines, self.table = folder / "metrics.jsonl", folder / "metrics.csv"
        self.rows = [row for row in _read(self.lines) if row["step"] <= step]
        self.columns = list(dict.fromkeys(key for row in self.rows for key in row))
        text = "".join(_line(row) for row in self.rows).encode()
        write_atomic(self.lines, [text], n_bytes=len(text))
        self._write_table()

    def write(self, metrics: Metrics) -> None:
        """Append a line to both files."""
        row = dict(metrics)
        self.rows.append(row)
        with self.lines.open("a", encoding="utf-8") as file:
            file.write(_line(row))
        if new := [key for key in row if key not in self.columns]:
            self.columns += new
            self._write_table()
            return
        with self.table.open("a", encoding="utf-8", newline="") as file:
            file.write(self._text([row]))

    def close(self) -> None:
        """Nothing is open."""

    def _write_table(self) -> None:
        header = ",".join(self.columns) + "\n" if self.columns else ""
        content = (header + self._text(self.rows)).encode()
        write_atomic(self.table, [content], n_bytes=len(content))

    def _text(self, rows: Iterable[Metrics]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self.columns, lineterminator="\n").writerows(rows)
        return text.getvalue()


class _TensorBoard:
    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        module = _import("tensorboard", "torch.utils.tensorboard")
        self.writer = module.SummaryWriter(str(folder / "tensorboard"))
        self.writer.add_text("settings", json.dumps(settings))

    def write(self, metrics: Metrics) -> None:
        for name, value in metrics.items():
            if name != "step":
                self.writer.add_scalar(name, value, int(metrics["step"]))

    def close(self) -> None:
        self.writer.close()


class _WandB:
    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        module = _import("wandb", "wandb")
        self.run = module.init(dir=str(folder), config=dict(settings))

    def write(self, metrics: Metrics) -> None:
        rest = {name: value for name, value in metrics.items() if name != "step"}
        self.run.log(rest, step=int(metrics["step"]))

    def close(self) -> None:
        self.run.finish()


def make_logs(names: Iterable[str], folder: Path, settings: Mapping[str, Any]) -> list[Log]:
    """Return the dashboards that are asked for.

    Raises
    ------
    InvalidArgumentError
        A name is not "tensorboard" or "wandb".
    UnsupportedError
        The package of one is not installed.
    """
    kinds: dict[str, Callable[[Path, Mapping[str, Any]], Log]] = {
        "tensorboard": _TensorBoard,
        "wandb": _WandB,
    }
    return [
        kinds[_checks.choice("train", "loggers", name, LOGGERS)](folder, settings) for name in names
    ]


def _import(package: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UnsupportedError(
            f"[train] loggers must be installed packages, got {package!r}, which is not ({error}). "
            f"Install it with: pip install {package}"
        ) from error


def words(metrics: Metrics) -> str:
    """Return the metrics that one looks at while a run works, in few characters; /s: of rows."""
    text = [f"loss {metrics['loss']:.4g}"]
    for name, form in (
        ("explained_variance", "EV {:.3f}"),
        ("l0", "L0 {:.1f}"),
        ("dead", "dead {:.0%}"),
        ("tokens_per_second", "{:,.0f}/s"),
    ):
        if name in metrics and math.isfinite(metrics[name]):
            text.append(form.format(metrics[name]))
    return " ".join(text)


@contextlib.contextmanager
def bar(total: int) -> Iterator[Any]:
    """Draw a bar with the latest metrics; gives ``advance(done, metrics or None)``."""
    try:
        from rich import progress
    except ImportError as error:
        raise UnsupportedError(
            "[train] progress=True needs the package 'rich', which is not installed. "
            "Install it with: pip install 'subspan[report]'"
        ) from error
    columns = (  # all of it in 80 characters
        progress.BarColumn(10),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[words]}"),
    )
    with progress.Progress(*columns) as drawn:
        task = drawn.add_task("training", total=total, words="")

        def advance(done: int, metrics: Metrics | None) -> None:
            drawn.update(task, completed=done)
            if metrics is not None:
                drawn.update(task, words=words(metrics))

        yield advance


def _line(row: Metrics) -> str:
    whole = {key: value if math.isfinite(value) else None for key, value in row.items()}
    return json.dumps(whole) + "\n"


def _read(path: Path) -> list[dict[str, float]]:
    """Return the lines of a log; what a kill left half-written is dropped."""
    rows = []
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_text("utf-8").splitlines():
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
    return rows
