"""The output folder of a run: refused when foreign, resumed when interrupted, whole when done.

While a run works, everything it owns lies in the hidden sub-folder ``.run``: what was asked
(``run.json``), the state to go on from, and the finished pieces (``stage``). The results appear in
the folder itself only at the end, the page last. So the folder says by itself where a run stands:

=====================================  ==================================
the folder                             the run
=====================================  ==================================
does not exist, or is empty            new
has ``.run``                           interrupted: it can be resumed
has a result of this kind, no ``.run``  finished
holds anything else                    not ours, never touched
=====================================  ==================================
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any

from subspan.errors import FileFormatError, InvalidArgumentError
from subspan.report.files import OutputError, write_json

try:
    import fcntl
except ImportError:  # Windows: two runs in one folder are then not noticed
    fcntl = None  # type: ignore[assignment]

__all__ = ["RunFolder"]

_WORK = ".run"


class RunFolder:
    """One output folder and the life of the run in it.

    Parameters
    ----------
    path
        The folder the user named.
    kind
        What is made, e.g. ``"atlas"``; used in messages and to recognise our own results.
    main
        The result that appears last and marks a finished run, e.g. ``"report.html"``.
    results
        Every name that a finished run leaves, or a pattern for it (``shard-*.bin``); a folder with
        other entries is foreign, and so is one without ``main``.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        kind: str,
        main: str = "report.html",
        results: tuple[str, ...] = (),
    ) -> None:
        self.path = Path(path)
        self.kind = kind
        self.main = main
        self.results = {main, *results}
        self.work = self.path / _WORK
        self.stage = self.work / "stage"
        self._lock: IO[bytes] | None = None

    def check(self, *, resume: bool = False, overwrite: bool = False) -> None:
        """Refuse a folder that cannot be used, before any input is opened.

        Raises
        ------
        InvalidArgumentError
            Both options are given, or ``resume`` where nothing waits to be resumed.
        OutputError
            The path is a file, holds foreign files, or holds a finished run.
        """
        name = self.kind
        if resume and overwrite:
            raise InvalidArgumentError(
                f"[{name}] at most one of resume and overwrite must be set, got both"
            )
        if self.path.exists() and not self.path.is_dir():
            raise OutputError(f"[{name}] out must be a folder, got the file {str(self.path)!r}")
        found = {entry.name for entry in self.path.iterdir()} if self.path.exists() else set()
        ours = {n for n in found if any(fnmatchcase(n, pattern) for pattern in self.results)}
        if not found & {self.main, _WORK}:
            ours = set()
        foreign = sorted(found - ours - {_WORK})
        if foreign:
            raise OutputError(
                f"[{name}] out must be a new or empty folder, got {str(self.path)!r} which holds "
                f"{foreign[0]!r}, not written by subspan. Choose another folder"
            )
        if resume and _WORK not in found:
            raise InvalidArgumentError(
                f"[{name}] resume needs a folder with an interrupted run, got {str(self.path)!r} "
                f"{'which is finished' if self.main in found else 'without one'}. "
                "Leave resume out to start a new run"
            )
        if found and not overwrite and _WORK not in found:
            raise OutputError(
                f"[{name}] out must be a new or empty folder, got {str(self.path)!r} which holds "
                "a finished run. Choose another folder, or overwrite it with --overwrite "
                "(overwrite=True)"
            )

    def open(self, identity: Mapping[str, Any], *, overwrite: bool = False) -> bool:
        """Take the folder for a run and say whether an interrupted one goes on.

        Parameters
        ----------
        identity
            JSON-able facts that must be equal for a resumed run: hashes of the inputs, settings.
        overwrite
            Drop whatever an earlier run left unfinished. Finished results stay until
            :meth:`publish` replaces them.

        Returns
        -------
        bool
            True when the state in ``work`` belongs to the same inputs and settings.
        """
        try:
            self.work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"[{self.kind}] cannot create {str(self.work)!r}: {error.strerror}"
            ) from error
        self._take_lock()
        wanted = json.loads(json.dumps(dict(identity)))
        note = self.work / "run.json"
        if note.exists() and not overwrite:
            different = _differences(_read(note), wanted)
            if different:
                self.close()
                raise OutputError(
                    f"[{self.kind}] {str(self.path)!r} holds an interrupted run with other "
                    f"settings ({different}). Give the same settings to resume it, or start anew "
                    "with --overwrite (overwrite=True)"
                )
            return True
        self._clear_work()
        self.stage.mkdir(exist_ok=True)
        write_json(note, wanted)
        return False

    def publish(self) -> None:
        """Move the staged results into the folder, the main one last, and end the run."""
        names = sorted(entry.name for entry in self.stage.iterdir())
        for name in sorted(names, key=lambda item: item == self.main):
            target = self.path / name
            if target.is_dir():
                shutil.rmtree(target)
            (self.stage / name).replace(target)
        self.close()
        shutil.rmtree(self.work)

    def fresh_stage(self) -> Path:
        """Return an empty folder for the results (what an interrupted finish left is dropped)."""
        shutil.rmtree(self.stage, ignore_errors=True)
        self.stage.mkdir(parents=True)
        return self.stage

    def close(self) -> None:
        """Give the folder free for another run; keeps its state."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @contextlib.contextmanager
    def held(self, identity: Mapping[str, Any], *, overwrite: bool = False) -> Iterator[bool]:
        """Open for the length of a ``with`` block; yields what :meth:`open` returns."""
        try:
            yield self.open(identity, overwrite=overwrite)
        finally:
            self.close()

    def _take_lock(self) -> None:
        # the kernel drops the lock when the process dies, so a killed run never blocks the next
        self._lock = (self.work / "lock").open("wb")
        if fcntl is None:
            return
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            raise OutputError(
                f"[{self.kind}] another run is working in {str(self.path)!r}. "
                "Wait for it or choose another folder"
            ) from error

    def _clear_work(self) -> None:
        for entry in self.work.iterdir():
            if entry.name == "lock":
                continue
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise FileFormatError(
            f"[resume] {str(path)!r} must be the note of an interrupted run, got an unreadable "
            "file. Start anew with --overwrite (overwrite=True)"
        ) from error
    return value if isinstance(value, dict) else {}


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return ", ".join(
        f"{key}: {_short(old.get(key))} before, {_short(new.get(key))} now" for key in keys
    )


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
