"""The linear layers of a model by name, and how a model is run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from subspan.activations import Model, TokenBatch
from subspan.activations.sites import make_plan
from subspan.errors import InvalidArgumentError, UnsupportedError

__all__ = ["Weight", "evaluating", "find_weights", "frozen", "inputs_of", "matrix_of"]

_LINEAR = ("Linear", "Conv1D", "NonDynamicallyQuantizableLinear")


class Weight(NamedTuple):
    """A linear layer of a model."""

    name: str
    module: Any
    layer: int
    """Number of its block; -1 outside the blocks."""
    kind: str
    """Its name inside the block."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        m, n = matrix_of(self.module).shape
        return int(m), int(n)


def matrix_of(module: Any) -> Any:
    """Return the weight (out, in) of a linear layer; GPT-2 keeps it as (in, out) in its Conv1D."""
    weight = module.weight.detach()
    return weight.T if type(module).__name__ == "Conv1D" else weight


def find_weights(model: Model, modules: str | Iterable[str] | None = None) -> list[Weight]:
    """Return the linear layers that module name patterns name.

    Parameters
    ----------
    model : Model
        A loaded model.
    modules : str or iterable of str, optional
        Patterns of module names as of `activations.find_sites` (``*`` within one part of a dotted
        name, ``**`` for anything). By default every linear layer inside the blocks.

    Returns
    -------
    list of Weight
        In the order of the model.

    Raises
    ------
    InvalidArgumentError
        A pattern matches nothing (the message lists similar names) or no linear layer; or a weight
        is tied to another module.
    UnsupportedError
        No pattern is given and the blocks cannot be told apart.
    """
    try:
        plan = make_plan(model, _patterns(model, modules), None)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(
            f"[find_weights] modules must be patterns that match linear layers, got: {error}"
        ) from error
    sites = {id(probe): probe.sites[0] for probe in plan.probes}
    order = {id(module): place for place, module in enumerate(model.hf.modules())}
    linear = [probe for probe in plan.probes if type(probe.module).__name__ in _LINEAR]
    if not linear:
        raise InvalidArgumentError(
            f"[find_weights] modules must match linear layers, got {modules!r}, which matches "
            f"{plan.probes[0].name!r} ({type(plan.probes[0].module).__name__})"
        )
    found = []
    for probe in sorted(linear, key=lambda one: order[id(one.module)]):
        ties = [
            name
            for name, module in model.hf.named_modules()
            if module is not probe.module and _shares(module, probe.module)
        ]
        if ties:
            raise InvalidArgumentError(
                f"[find_weights] modules must have weights of their own, got {probe.name!r}, whose "
                f"weight is that of {ties[0]!r} too. Leave it out: a change would change both"
            )
        site = sites[id(probe)]
        found.append(Weight(probe.name, probe.module, site.layer, site.kind))
    return found


def _patterns(model: Model, modules: str | Iterable[str] | None) -> list[str]:
    if modules is not None:
        return [modules] if isinstance(modules, str) else list(modules)
    names = [
        f"{block.name}.{name}"
        for block in model.blocks
        for name, module in block.module.named_modules()
        if type(module).__name__ in _LINEAR
    ]
    if not names:
        raise UnsupportedError(
            "[find_weights] model must have blocks with linear layers, got "
            f"{type(model.hf).__name__}. Give patterns of module names"
        )
    return names


def _shares(a: Any, b: Any) -> bool:
    weight = getattr(a, "weight", None)
    return weight is not None and weight is b.weight


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


@contextlib.contextmanager
def frozen(hf: Any) -> Iterator[None]:
    """Have no weight ask for a gradient; let those that did ask again afterwards."""
    asking = [p for p in hf.parameters() if p.requires_grad]
    try:
        for p in asking:
            p.requires_grad_(False)
        yield
    finally:
        for p in asking:
            p.requires_grad_(True)


def inputs_of(model: Model, batch: TokenBatch) -> tuple[dict[str, Any], Any]:
    """Return the arguments of a forward pass, and the mask (windows, length) of real tokens."""
    import torch

    ids, real = batch.padded()
    mask = torch.from_numpy(real).to(model.device)
    made = {"input_ids": torch.from_numpy(ids).to(model.device), "attention_mask": mask.long()}
    return made | ({"use_cache": False} if model.kind == "causal" else {}), mask
