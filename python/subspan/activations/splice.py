"""Put other activations in the place of a model's own, at one site, while a block of code runs."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from subspan.activations._running import evaluating
from subspan.activations._site import Site
from subspan.activations.models import Model
from subspan.activations.sites import Probe, make_plan
from subspan.errors import InvalidArgumentError, UnsupportedError

__all__ = ["splice"]

Replace = Callable[[Any], Any]


@contextlib.contextmanager
def splice(model: Model, site: str | Site, replace: Replace) -> Iterator[Site]:
    """Run ``replace`` on the activations of a site in every forward pass inside the block.

    ``x' = replace(x)``; the model goes on with x'.

    Parameters
    ----------
    model : Model
        A loaded model. Inside the block it is in evaluation mode; it is left as it was found.
    site : str or Site
        One site that a module takes in or gives out: "resid" of a layer, "attn", "mlp", or a
        module by its name, as a site key ("layer.03/resid") or a pattern that matches one module.
    replace : callable
        Takes the tensor (batch, tokens, width) of the site, padding included, and returns one of
        the same shape, dtype and device; or None, for no change.

    Yields
    ------
    Site
        The site that was found.

    Raises
    ------
    InvalidArgumentError
        There is no such site, or there are several; or replace returned another shape or dtype.
    UnsupportedError
        The site is no input or output of a module (keys and values of the cache), or the module
        returns something else than a tensor.

    Examples
    --------
    >>> import torch, transformers
    >>> from subspan.activations import load_model, splice
    >>> config = transformers.GPT2Config(
    ...     n_embd=8, n_layer=2, n_head=2, vocab_size=16, bos_token_id=0, eos_token_id=0)
    >>> model = load_model(transformers.GPT2LMHeadModel(config))
    >>> ids = torch.arange(4)[None]
    >>> with torch.no_grad(), splice(model, "layer.01/resid", torch.zeros_like):
    ...     logits = model.hf(ids).logits
    >>> bool((logits[0, 0] == logits[0, 1]).all())
    True
    """
    plan = make_plan(model, [site], None)
    if len(plan.sites) != 1:
        keys = ", ".join(found.key for found in plan.sites[:4])
        raise InvalidArgumentError(
            f"[splice] site must name one site, got {site!r}, which names {len(plan.sites)}: "
            f"{keys}, ..."
        )
    if not plan.probes or plan.probes[0].heads is not None:
        raise UnsupportedError(
            f"[splice] site must be what a module takes in or gives out, got {plan.sites[0].key!r}"
        )
    probe = plan.probes[0]
    with evaluating(model.hf):
        if probe.side == "input":
            handle = probe.module.register_forward_pre_hook(
                _input_hook(probe, replace), with_kwargs=True
            )
        else:
            handle = probe.module.register_forward_hook(_output_hook(probe, replace))
        try:
            yield plan.sites[0]
        finally:
            handle.remove()


def _replaced(probe: Probe, replace: Replace, x: Any) -> Any:
    if not hasattr(x, "shape"):
        raise UnsupportedError(
            f"[splice] module {probe.name!r} must return a tensor, got {type(x).__name__}"
        )
    made = replace(x)
    if made is None:
        return x
    if tuple(made.shape) != tuple(x.shape) or made.dtype != x.dtype:
        raise InvalidArgumentError(
            f"[splice] replace must return {tuple(x.shape)} of {x.dtype}, got "
            f"{tuple(made.shape)} of {made.dtype}"
        )
    return made


def _input_hook(probe: Probe, replace: Replace) -> Callable[..., Any]:
    def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (_replaced(probe, replace, args[0]), *args[1:]), kwargs
        name = "hidden_states"
        return args, kwargs | {name: _replaced(probe, replace, kwargs.get(name))}

    return hook


def _output_hook(probe: Probe, replace: Replace) -> Callable[..., Any]:
    def hook(_module: Any, _args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):
            return (_replaced(probe, replace, output[0]), *output[1:])
        return _replaced(probe, replace, output)

    return hook
