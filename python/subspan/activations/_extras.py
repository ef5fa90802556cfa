"""The one place where the optional libraries of `subspan[models]` are imported."""

import contextlib
import functools
import importlib
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from subspan.errors import UnsupportedError


def require(module: str, *, function: str) -> Any:
    """Import an optional module, or say which extra brings it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ImportError as error:
        raise UnsupportedError(
            f"[{function}] needs the package '{module.partition('.')[0]}', got an import error "
            f"({error}). Install it with: pip install 'subspan[models]'"
        ) from error


@contextlib.contextmanager
def quiet_and_offline(function: str) -> Iterator[None]:
    """Keep transformers silent and away from the network inside the block, and only there.

    The hub client reads its environment variable once, at import, so the constant it was read
    into is set as well. The GGUF reader draws its own bar, past the switch for all the others.
    """
    gguf_reader = "transformers.modeling_gguf_pytorch_utils"
    with contextlib.ExitStack() as undo:
        _swap_environ(undo, "HF_HUB_OFFLINE", "1")
        undo.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        constants = require("huggingface_hub.constants", function=function)
        _swap_attribute(undo, constants, "HF_HUB_OFFLINE", True)
        logging = require("transformers.utils.logging", function=function)
        undo.callback(logging.set_verbosity, logging.get_verbosity())
        logging.set_verbosity_error()
        if logging.is_progress_bar_enabled():
            logging.disable_progress_bar()
            undo.callback(logging.enable_progress_bar)
        with contextlib.suppress(ImportError):
            importlib.import_module(gguf_reader)
            bar = getattr(sys.modules[gguf_reader], "tqdm", None)
            if bar is not None:
                silent = functools.partial(bar, disable=True)
                _swap_attribute(undo, sys.modules[gguf_reader], "tqdm", silent)
        yield


def _swap_attribute(undo: contextlib.ExitStack, owner: Any, name: str, value: Any) -> None:
    undo.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)


def _swap_environ(undo: contextlib.ExitStack, name: str, value: str) -> None:
    before = os.environ.get(name)
    if before is None:
        undo.callback(os.environ.pop, name, None)
    else:
        undo.callback(os.environ.__setitem__, name, before)
    os.environ[name] = value
