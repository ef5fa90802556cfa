"""The name of a place in a model where activations are read."""

import re
from typing import NamedTuple

from subspan.errors import InvalidArgumentError

KINDS = ("resid", "attn", "mlp", "k", "v")

_NAMES = {
    "resid": "residual stream",
    "attn": "attention output",
    "mlp": "MLP output",
    "k": "keys",
    "v": "values",
}

_KEY = re.compile(r"layer\.(\d+)/([^/]+)(?:/head\.(\d+))?")


class Site(NamedTuple):
    """A place in a model where activations are read.

    Attributes
    ----------
    layer : int
        Block number from 0; ``resid`` has one more, for what leaves the last block.
        -1 for a module outside the blocks.
    kind : str
        "resid", "attn", "mlp", "k", "v", or the name of a module (inside its block, if any).
    head : int or None
        Number of the KV head for "k" and "v".

    Examples
    --------
    >>> Site(3, "k", 1).key
    'layer.03/k/head.1'
    >>> Site.parse("layer.03/k/head.1")
    Site(layer=3, kind='k', head=1)

    """

    layer: int
    kind: str
    head: int | None = None

    @property
    def key(self) -> str:
        """The site as text, fit for tables, file names and `parse`."""
        if self.layer < 0:
            return self.kind
        head = "" if self.head is None else f"/head.{self.head}"
        return f"layer.{self.layer:02d}/{self.kind}{head}"

    @classmethod
    def parse(cls, key: str) -> "Site":
        """Return the site that a key names; the inverse of `key`."""
        match = _KEY.fullmatch(key)
        if match is None:
            raise InvalidArgumentError(
                f"[Site.parse] key must look like 'layer.03/resid' or 'layer.03/k/head.1', "
                f"got {key!r}"
            )
        layer, kind, head = match.groups()
        return cls(int(layer), kind, None if head is None else int(head))

    def order(self) -> tuple[int, int, str, int]:
        """Sort key: by layer, then resid, attn, mlp, k, v, other modules, then head."""
        rank = KINDS.index(self.kind) if self.kind in KINDS else len(KINDS)
        layer = self.layer if self.layer >= 0 else 1 << 30
        return layer, rank, self.kind, -1 if self.head is None else self.head


def kind_name(kind: str) -> str:
    """Return the words for a site kind; a module's own name stays as it is."""
    return _NAMES.get(kind, kind)


def headline(kind: str) -> str:
    """Return the words for a site kind with a capital letter."""
    name = kind_name(kind)
    return name[:1].upper() + name[1:] if kind in _NAMES else name
