"""A job under the eyes of a user: a bar while it works, one message when it fails."""

from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from subspan.errors import InternalError, SubspanError

__all__ = ["guarded", "show"]

_STAGES = {
    "loading": "loading",
    "tokens": "reading tokens",
    "activations": "activations",
    "spectra": "spectra",
    "weights": "weights",
    "training": "training",
    "evaluation": "losses",
    "dictionary": "dictionary",
    "calibration": "calibration",
    "factors": "factors",
    "dictionaries": "dictionaries",
    "search": "searching rates",
    "points": "points",
    "report": "writing the report",
}


def show(result: Any, *, quiet: bool) -> None:
    """Print the verdict and where the page lies."""
    if not quiet:
        console = Console()
        console.print()
        console.print(result.summary, markup=False, highlight=False)
        console.print()
        console.print(f"Report: {result.page}", markup=False, highlight=False, soft_wrap=True)


class _Rate(ProgressColumn):
    """Tokens per second, once there is a speed."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None or not task.total else f"{speed:,.0f}/s")


def guarded(work: Any, *, quiet: bool) -> Any:
    """Run ``work(progress)`` with a bar; turn every failure into one message and an exit code."""
    errors = Console(stderr=True)
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description:<20}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        console=errors,
        transient=True,
        disable=quiet,
    )
    tasks: dict[str, Any] = {}
    shown = [""]

    def progress(stage: str, done: int, total: int) -> None:
        if stage != shown[0]:
            for task in tasks.values():
                bar.stop_task(task)
                bar.update(task, visible=False)
            if stage in tasks:  # a job may come back to a stage
                bar.reset(tasks[stage], total=total or None, visible=True)
            else:
                tasks[stage] = bar.add_task(_STAGES.get(stage, stage), total=total or None)
            shown[0] = stage
        bar.update(tasks[stage], completed=done)

    try:
        with bar:
            return work(progress)
    except KeyboardInterrupt:
        message = "Interrupted. Run the same command again: it resumes from the last checkpoint."
        code = 130
    except InternalError as error:
        message, code = f"Internal error: {error}", 1
    except (SubspanError, FileNotFoundError, PermissionError) as error:
        message, code = f"Error: {_text(error)}", 2
    except Exception as error:
        # a fault of ours: still one line, with the place to look at
        where = error.__traceback__
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        place = (
            f" ({Path(where.tb_frame.f_code.co_filename).name}:{where.tb_lineno})" if where else ""
        )
        message, code = f"Internal error: {type(error).__name__}: {error}{place}", 1
    errors.print(message, markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(code)


def _text(error: BaseException) -> str:
    # an OSError would print as "[Errno 28] ...": the message and the path are what a user needs
    if isinstance(error, OSError) and error.strerror:
        path = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{path}"
    return str(error)
