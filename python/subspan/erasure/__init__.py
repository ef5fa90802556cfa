"""Maps of features that take a concept out of them: what is linear, what is in heads or columns."""

from subspan.erasure.inlp import INLP
from subspan.erasure.leace import LEACE, OracleLEACE
from subspan.erasure.removal import CoordinateRemoval, HeadRemoval

__all__ = ["INLP", "LEACE", "CoordinateRemoval", "HeadRemoval", "OracleLEACE"]
