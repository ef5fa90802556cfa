"""Spectrum atlas: how many directions each layer of a model uses, and what hides it.

``atlas(model, texts, out="folder")`` is the whole job; ``subspan atlas`` is the same on the
command line. ``load_moments`` reads the moments of a finished atlas back.
"""

from subspan.atlas._job import SCHEMA, Atlas, atlas
from subspan.atlas._state import MOMENTS_SCHEMA, load_moments

__all__ = ["MOMENTS_SCHEMA", "SCHEMA", "Atlas", "atlas", "load_moments"]
