"""What running somebody else's model needs: leave it as it was found, keep all keys and values."""

import contextlib
from collections.abc import Iterator
from typing import Any

from subspan.activations._extras import require


@contextlib.contextmanager
def evaluating(hf: Any) -> Iterator[None]:
    """Switch off dropout; put each module back into the mode it was in."""
    training = [module for module in hf.modules() if module.training]
    hf.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def new_cache() -> Any:
    """Return an empty KV cache that keeps every token, also under a sliding window."""
    return require("transformers.cache_utils", function="capture").DynamicCache()
