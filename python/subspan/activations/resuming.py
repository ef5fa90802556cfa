"""Run a model from one of its layers on, with states that an earlier pass had there."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from subspan import _checks
from subspan.activations._running import evaluating
from subspan.activations.models import Model
from subspan.errors import InvalidArgumentError

__all__ = ["resume_at"]


@contextlib.contextmanager
def resume_at(model: Model, layer: int, states: Any) -> Iterator[None]:
    """Let every forward pass inside the block begin at a layer, with given states.

    The layers below are passed through without being run, so a model that is run many times on the
    same tokens, with a change in an upper layer, costs the upper layers only.

    Parameters
    ----------
    model : Model
        A loaded model. Inside the block it is in evaluation mode; it is left as it was found.
    layer : int
        In 0..n_layers - 1: the first layer that runs.
    states : tensor (batch, tokens, width)
        The residual stream entering it, padding included, of the tokens that the passes are for.

    Raises
    ------
    InvalidArgumentError
        The model has no such layer, or the states have another shape than those of the pass.

    Notes
    -----
    The result is that of the whole model only where layers hand on nothing but the residual stream,
    as one tensor. A few models share keys, values or a bias between layers; compare one pass with
    and without to know.

    Examples
    --------
    >>> import torch, transformers
    >>> from subspan.activations import load_model, resume_at, splice
    >>> config = transformers.GPT2Config(
    ...     n_embd=8, n_layer=4, n_head=2, vocab_size=16, bos_token_id=0, eos_token_id=0)
    >>> model = load_model(transformers.GPT2LMHeadModel(config))
    >>> ids, seen = torch.arange(4)[None], []
    >>> with torch.no_grad(), splice(model, "layer.03/resid", seen.append):
    ...     whole = model.hf(ids).logits
    >>> with torch.no_grad(), resume_at(model, 3, seen[0]):
    ...     bool((model.hf(ids).logits == whole).all())
    True
    """
    n = len(model.blocks)
    if not n:
        raise InvalidArgumentError(
            f"[resume_at] model must have layers that can be told apart, got {model.name!r}"
        )
    _checks.integer("resume_at", "layer", layer, low=0, high=n - 1)
    skipped = [block.module for block in model.blocks if block.number < layer]
    # The attribute of the instance is called in the place of the method of the class.
    own = [vars(module).get("forward") for module in skipped]
    with evaluating(model.hf):
        handle = model.blocks[layer].module.register_forward_pre_hook(
            _entering(states), with_kwargs=True
        )
        try:
            for module in skipped:
                module.forward = _through
            yield
        finally:
            handle.remove()
            for module, before in zip(skipped, own, strict=True):
                if before is None:
                    vars(module).pop("forward", None)
                else:
                    module.forward = before


def _through(*args: Any, **kwargs: Any) -> Any:
    return args[0] if args else kwargs["hidden_states"]


def _entering(states: Any) -> Callable[..., Any]:
    def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        came = args[0] if args else kwargs["hidden_states"]
        if came.shape != states.shape:
            raise InvalidArgumentError(
                f"[resume_at] states must have shape {tuple(came.shape)}, that of the pass, got "
                f"{tuple(states.shape)}"
            )
        return ((states, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": states})

    return hook
