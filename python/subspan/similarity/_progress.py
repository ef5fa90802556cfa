"""Progress of long comparisons: stages of known length."""

from collections.abc import Callable

__all__ = ["Progress", "Steps"]

Progress = Callable[[str, int, int], None]
"""Called as ``progress(stage, done, total)``: "layers", then "pairs", then "permutations"."""


class Steps:
    """Counts what is done in each stage, for whoever wants to know."""

    def __init__(self, progress: Progress | None = None) -> None:
        self._progress = progress

    def stage(self, name: str, total: int) -> Callable[[int], None]:
        """Return the function to call with what was just done."""
        progress = self._progress
        if progress is None:
            return lambda _: None
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress(name, done, total)

        progress(name, 0, total)
        return advance
