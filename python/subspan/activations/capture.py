"""Run a model over a token stream and hand out its activations, batch after batch."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

from subspan.activations._batches import ActivationBatch, TokenBatch
from subspan.activations._extras import require
from subspan.activations._running import evaluating, new_cache
from subspan.activations._site import KINDS, Site
from subspan.activations.models import Model
from subspan.activations.sites import Plan, Probe, make_plan
from subspan.activations.tokens import TokenStream
from subspan.errors import InvalidArgumentError, OutOfMemoryError, UnsupportedError

Progress = Callable[[int, int], object]


def capture(
    model: Model,
    stream: TokenStream,
    *,
    sites: str | Site | Iterable[str | Site] = KINDS,
    layers: Iterable[int] | None = None,
    start: int = 0,
    progress: Progress | None = None,
    output: Literal["numpy", "torch"] = "numpy",
) -> Iterator[ActivationBatch]:
    """Yield the activations of each batch of the stream at the sites asked for.

    * ``resid``: layer i is the hidden state that enters block i; layer L, the number of blocks,
      is what leaves the last block, before any final norm.
    * ``attn``, ``mlp``: what the module adds to the residual stream (after the output
      projection), before a norm or a residual sum that the block or the module itself applies.
    * ``k``, ``v``: per KV head. In causal models as cached, keys after rotary embedding; in
      encoders the outputs of the key and value layers.
    * Any other module: its output (the first, when there are several).

    Parameters
    ----------
    model : Model
        A loaded model. It is run in evaluation mode and left as it was found.
    stream : TokenStream
        From `tokenize`.
    sites : kind, Site, site key, module name pattern, or iterable of them
        See `find_sites`.
    layers : iterable of int, optional
        Only these layers.
    start : int, default 0
        Number of the first batch, to resume a run; in 0..len(stream).
    progress : callable, optional
        Called as ``progress(done, total)`` in batches, before each batch is handed out.
    output : {"numpy", "torch"}, default "numpy"
        numpy arrays in main memory, or torch tensors on the device of the model.

    Yields
    ------
    ActivationBatch
        One float32 array (float64 for a float64 model) of shape (n_tokens, width) for each site.
        Padding is left out; the arrays are copies that nothing else refers to.

    Raises
    ------
    InvalidArgumentError, UnsupportedError
        At the call, not at the first batch, when a site, layer or start does not exist.
        During the run, when a module is not called once per pass or returns no token rows.
    OutOfMemoryError
        The batch is too large for the device.

    Notes
    -----
    Hooks exist only while the model runs, never while the caller holds the generator. The language
    model head is not run unless a site asks for it. Memory per batch: 4 bytes x tokens x the
    sum of the widths of all sites. Results do not depend on the batch size beyond rounding.

    """
    if output not in ("numpy", "torch"):
        raise InvalidArgumentError(f"[capture] output must be 'numpy' or 'torch', got {output!r}")
    if not 0 <= start <= len(stream):
        raise InvalidArgumentError(
            f"[capture] start must be in 0..{len(stream)} (number of batches), got {start}"
        )
    plan = make_plan(model, sites, layers)
    batches = (stream[index] for index in range(start, len(stream)))
    report = None if progress is None else functools.partial(_report, progress, len(stream))
    return _generate(model, plan, batches, report, output)


def _report(progress: Progress, total: int, done: int) -> None:
    progress(done, total)


def _generate(
    model: Model,
    plan: Plan,
    batches: Iterator[TokenBatch],
    report: Callable[[int], object] | None,
    output: str,
) -> Iterator[ActivationBatch]:
    for number, tokens in enumerate(batches):
        # The first batch runs to its end, to see that no module is called twice; the others stop
        # as soon as the last site was reached.
        tensors = _run(model, plan, tokens, stop_early=number > 0 and not plan.cached)
        arrays = tensors
        if output == "numpy":
            arrays = {site: tensor.cpu().numpy() for site, tensor in tensors.items()}
        if report is not None:
            report(tokens.index + 1)
        yield ActivationBatch(tokens.index, tokens, arrays)


def _run(model: Model, plan: Plan, tokens: TokenBatch, *, stop_early: bool) -> dict[Site, Any]:
    """Run one batch; nothing of the hooks or of the evaluation mode outlives this call."""
    torch = require("torch", function="capture")
    ids, mask = tokens.padded()
    inputs = {
        "input_ids": torch.from_numpy(ids).to(model.device),
        "attention_mask": torch.from_numpy(mask).to(device=model.device, dtype=torch.int64),
    }
    runner = _runner(model, plan)
    cache = None
    if model.kind == "causal":
        inputs["use_cache"] = bool(plan.cached)
        if plan.cached:
            cache = inputs["past_key_values"] = new_cache()
    rows = _Rows(torch, inputs["attention_mask"], len(plan.sites) if stop_early else None)
    try:
        with evaluating(model.hf), _hooked(plan.probes, rows), torch.inference_mode():
            runner(**inputs)
            if cache is not None:
                _read_cache(cache, plan.cached, rows)
    except _AllFound:
        pass
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"[capture] batch {tokens.index} of {ids.shape[0]} x {ids.shape[1]} tokens must fit in "
            f"memory, got: {error}. Use a smaller batch_size or window."
        ) from error
    silent = [site.key for site in plan.sites if site not in rows.found]
    if silent:
        raise UnsupportedError(
            f"[capture] sites must be reached when the model runs, got {silent[0]!r}, which was not"
        )
    return {site: rows.found[site] for site in plan.sites}


def _runner(model: Model, plan: Plan) -> Any:
    """Return the model without its head, unless a hooked module lies outside of that."""
    inside = {id(module) for module in model.hf.base_model.modules()}
    whole = any(id(probe.module) not in inside for probe in plan.probes)
    return model.hf if whole else model.hf.base_model


class _AllFound(Exception):
    """Stops the forward pass of the model once nothing more is wanted of it."""


class _Rows:
    """Collects the rows of real tokens from tensors with padding."""

    def __init__(self, torch: Any, mask: Any, enough: int | None) -> None:
        self.enough = enough
        self.torch = torch
        self.shape = tuple(mask.shape)
        real = mask.reshape(-1).bool()
        self.real = None if bool(real.all()) else real.nonzero()[:, 0]
        self.found: dict[Site, Any] = {}

    def put(self, probe: Probe, tensor: Any) -> None:
        """Store what one module returned, cut into heads when it holds several."""
        flat = self._flat(probe.name, tensor)
        for site in probe.sites:
            if site.head is None or probe.heads is None:
                self._store(site, flat)
            else:
                self._store(site, flat.reshape(len(flat), probe.heads, -1)[:, site.head])
        if len(self.found) == self.enough:
            raise _AllFound

    def put_cached(self, site: Site, states: Any) -> None:
        """Store one head of keys or values of shape (batch, heads, tokens, head width)."""
        self._store(site, self._flat(site.key, states[:, site.head]))

    def _flat(self, name: str, tensor: Any) -> Any:
        batch, length = self.shape
        shape = tuple(getattr(tensor, "shape", ()))
        if len(shape) == 3 and shape[:2] == self.shape:
            return tensor.reshape(batch * length, -1)
        if len(shape) == 2 and shape[0] == batch * length:  # some modules flatten their tokens
            return tensor
        raise UnsupportedError(
            f"[capture] module {name!r} must return (batch, tokens, width), here ({batch}, "
            f"{length}, width), got {shape or type(tensor).__name__}"
        )

    def _store(self, site: Site, flat: Any) -> None:
        if site in self.found:
            raise UnsupportedError(
                f"[capture] the module at {site.key!r} must run once per pass, got a second call. "
                "Layers that share weights cannot be told apart by module."
            )
        # a copy, made as a normal tensor: the model may reuse the memory, the caller may train
        with self.torch.inference_mode(False), self.torch.no_grad():
            wide = self.torch.promote_types(flat.dtype, self.torch.float32)
            rows = flat.clone() if self.real is None else flat.index_select(0, self.real)
            self.found[site] = rows.to(wide).contiguous()


def _read_cache(cache: Any, sites: list[Site], rows: _Rows) -> None:
    for site in sites:
        layer = cache.layers[site.layer]
        rows.put_cached(site, layer.keys if site.kind == "k" else layer.values)


@contextlib.contextmanager
def _hooked(probes: list[Probe], rows: _Rows) -> Iterator[None]:
    """Keep all probes hooked inside the block; no hook outlives it, whatever happens."""
    with contextlib.ExitStack() as undo:
        for probe in probes:
            if probe.side == "input":
                handle = probe.module.register_forward_pre_hook(
                    _input_hook(probe, rows), with_kwargs=True
                )
            else:
                handle = probe.module.register_forward_hook(_output_hook(probe, rows))
            undo.callback(handle.remove)
        yield


def _input_hook(probe: Probe, rows: _Rows) -> Callable[..., None]:
    def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rows.put(probe, args[0] if args else kwargs.get("hidden_states"))

    return hook


def _output_hook(probe: Probe, rows: _Rows) -> Callable[..., None]:
    def hook(_module: Any, _args: tuple[Any, ...], output: Any) -> None:
        rows.put(probe, output[0] if isinstance(output, tuple | list) else output)

    return hook
