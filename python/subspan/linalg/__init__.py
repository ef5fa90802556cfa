"""Linear algebra on top of the primitives: whitening."""

from subspan.linalg.whitening import Whitening

__all__ = ["Whitening"]
