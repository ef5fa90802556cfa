"""A finished report as an object, and the last steps that every job takes to get there."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from subspan.errors import FileFormatError
from subspan.report import style
from subspan.report.facts import Stopwatch
from subspan.report.files import write_json
from subspan.report.folder import RunFolder
from subspan.report.html import Page

__all__ = ["Picture", "Progress", "Result", "finish", "silent"]

Progress = Callable[[str, int, int], None]
"""Called as ``progress(stage, done, total)``."""
Picture = tuple[str, Any, str]
"""File name, matplotlib figure, caption."""


def silent(stage: str, done: int, total: int) -> None:
    """Take no notice."""


@dataclass(frozen=True)
class Result:
    """A finished report in its folder."""

    schema: ClassVar[str]

    path: Path
    report: dict[str, Any] = field(repr=False)

    @property
    def summary(self) -> str:
        """The verdict in words."""
        return str(self.report["verdict"]["text"])

    @property
    def page(self) -> Path:
        """The page to open in a browser."""
        return self.path / "report.html"

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``report.json``."""
        return self.report

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a finished report from its folder."""
        file = Path(path) / "report.json"
        call = f"[{cls.__name__}.load]"
        try:
            report = json.loads(file.read_text("utf-8"))
        except ValueError as error:
            raise FileFormatError(f"{call} {str(file)!r} must be JSON, got {error}") from error
        if not isinstance(report, dict) or report.get("schema") != cls.schema:
            raise FileFormatError(f"{call} {str(file)!r} must have the schema {cls.schema!r}")
        return cls(Path(path), report)


def finish(
    folder: RunFolder,
    report: dict[str, Any],
    pictures: Iterable[Picture],
    page: Callable[[dict[str, Any], Mapping[str, tuple[str, str]]], Page],
    watch: Stopwatch,
) -> None:
    """Draw and write everything into the stage of the folder, then publish it.

    ``page`` takes the report and the drawn pictures, name to inline SVG and caption.
    """
    drawn: dict[str, tuple[str, str]] = {}
    with watch.part("report"):
        (folder.stage / "figures").mkdir()
        for name, figure, caption in pictures:
            drawn[name] = (style.save(figure, folder.stage / "figures", name), caption)
    report["facts"]["seconds"] = {name: round(value, 3) for name, value in watch.seconds.items()}
    report["figures"] = {
        name: {"png": f"figures/{name}.png", "svg": f"figures/{name}.svg", "caption": caption}
        for name, (_, caption) in drawn.items()
    }
    write_json(folder.stage / "report.json", report)
    page(report, drawn).write(folder.stage / "report.html")
    folder.publish()
