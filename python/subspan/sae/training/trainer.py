"""Training of sparse autoencoders, step by step, from a state that can be written down."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from subspan import _checks
from subspan._config import keep_memory
from subspan.errors import DtypeError, InvalidArgumentError, UnsupportedError
from subspan.sae.modules.base import LossTerms
from subspan.sae.training.checkpoints import Checkpoint, require_architecture, require_shapes
from subspan.sae.training.config import TrainConfig
from subspan.sae.training.optimizers import make_optimizer
from subspan.sae.training.parallel import Ranks, any_over_ranks, over_ranks, rank_count
from subspan.sae.training.sources import source_of

__all__ = ["StepResult", "Trainer"]


@dataclass(frozen=True)
class StepResult:
    """What happened in a step.

    Attributes
    ----------
    x : tensor (rows, d)
        The rows that this process saw.
    loss : LossTerms
        Of these rows, before the step; without gradients.
    lr : float
    grad_norm : float or None
        Before clipping; None where nothing is clipped.
    """

    x: Any
    loss: Any
    lr: float
    grad_norm: float | None


class Trainer:
    """Trains an autoencoder in place, one `step` after the other.

    `train` does all of it, with a folder, a log and a bar; this is for loops of one's own.

    Parameters
    ----------
    sae : SAE
    source : ActivationStore, array (n, d) or iterable of arrays (batch_size, d)
        Stores and arrays are shuffled anew in every epoch.
    config : TrainConfig
    site : str, optional
        Of a store with several.
    exclude : OutlierRule or bool array (n,), optional
        Rows that are never drawn.
    group : torch.distributed.ProcessGroup, optional
        Processes that share each batch; all of them call with the same arguments. Gradients are
        averaged over them, and what is selected from a batch is selected from all of it.

    Attributes
    ----------
    done : int
        Steps that were made.
    silent : int64 tensor (n,)
        Rows since each latent was last active.

    Raises
    ------
    InvalidArgumentError
        The settings do not go with the autoencoder, the data or the number of processes.
    DtypeError
        ``source`` is none of the three, or ``config`` no TrainConfig.

    Notes
    -----
    Beside the weights and their gradients two running means of the size of the weights, 8 bytes for
    each latent, and a batch; nothing of batch times latents. The gradients are those that the
    backward pass makes, used where they lie, and their memory serves the next step.

    The counts of `silent` include the present batch before dead latents are chosen, as in Gao et
    al. 2024, `arXiv:2406.04093 <https://arxiv.org/abs/2406.04093>`_.

    Examples
    --------
    >>> import torch
    >>> from subspan.sae import TopKSAE, TrainConfig, Trainer
    >>> x = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0))
    >>> sae = TopKSAE(8, 32, k=4)
    >>> trainer = Trainer(sae, x, TrainConfig(steps=60, batch_size=100, lr=1e-2))
    >>> losses = [float(trainer.step().loss.total) for _ in range(60)]
    >>> losses[-1] < losses[0] / 2
    True
    """

    def __init__(
        self,
        sae: Any,
        source: Any,
        config: TrainConfig,
        *,
        site: Any = None,
        exclude: Any = None,
        group: Any = None,
    ) -> None:
        if not isinstance(config, TrainConfig):
            raise DtypeError(f"[train] config must be a TrainConfig, got {type(config).__name__}")
        self.sae, self.config = sae, config
        self.k = getattr(sae, "k", None)
        self.n_latents = int(sae.w_dec.shape[0])
        if config.k_start is not None:
            if self.k is None:
                raise InvalidArgumentError(
                    f"[train] k_start must be left out for {sae.architecture!r}, which has no k, "
                    f"got {config.k_start}"
                )
            _checks.real("train", "k_start", config.k_start, low=0, high=self.n_latents)
        if config.penalty_warmup_steps and not hasattr(sae, "sparsity_scale"):
            raise InvalidArgumentError(
                f"[train] penalty_warmup_steps must be 0 for {sae.architecture!r}, which has no "
                f"sparsity penalty, got {config.penalty_warmup_steps}"
            )
        self.ranks = Ranks(group)
        if self.ranks.size > 1 and sae.architecture == "feature_choice":
            raise UnsupportedError(
                "[train] group must be left out for 'feature_choice', whose latents choose among "
                "all rows of a batch, got one of several processes. Train it in one process"
            )
        self.ranks.check_batch(config.batch_size)
        self.source = source_of(
            source, config.batch_size, seed=config.seed, site=site, exclude=exclude
        )
        self.optimizer = make_optimizer(sae, config)
        gradients = sum(p.numel() * p.element_size() for p in sae.parameters())
        keep_memory(self, gradients)
        self._spares_active = getattr(sae, "spares_active", None) is not None
        if self._spares_active:
            sae.spares_active = True
        self.silent = torch.zeros(self.n_latents, dtype=torch.int64)
        self.done = 0
        self._random = torch.Generator().manual_seed(config.seed).get_state()
        self._batches: Iterator[Any] | None = None

    # ---- steps -------------------------------------------------------------------------------

    def start(self) -> None:
        """Set the weights from the first rows of the data, as the settings say.

        The first `step` does it by itself; rows that were looked at are trained on all the same.
        """
        self._batches = self.source.open(0)
        init = self.config.init
        if init == "auto":
            init = None if self.sae.started else "tied"
        if init is not None:
            seen = -(-self.config.init_rows // self.config.batch_size)
            first = list(itertools.islice(self._batches, seen))
            self._batches = itertools.chain(first, self._batches)
            if first:
                with self._random_numbers():
                    self.sae.initialize(
                        torch.cat(first)[: self.config.init_rows],
                        init=init,
                        rank=self.config.init_rank,
                    )
        self.ranks.copy_from_first(self.sae)

    def step(self) -> StepResult:
        """Make one step of training.

        Returns
        -------
        StepResult

        Raises
        ------
        InvalidArgumentError
            All steps are done, the data ended, or rows or weights are not finite.
        """
        if self.done >= self.config.total_steps:
            raise InvalidArgumentError(
                f"[Trainer.step] must be called at most {self.config.total_steps} times, the steps "
                "of the settings"
            )
        if self._batches is None:
            self.start()
        x = self.ranks.share(self._next())
        lr = self.config.lr_at(self.done, n_latents=self.n_latents)
        self._schedule()
        self.sae.train()
        with self._random_numbers(), self.ranks.joined():
            silent = self.silent + self.config.batch_size
            # The counts with this batch in them, but for the latents that are active in it: of
            # these the loss hears first. Where it takes no notice, the counts before the batch.
            counted = silent if self._spares_active else self.silent
            dead = counted >= self.config.dead_after_tokens
            loss = self.sae.loss(x, dead=dead if bool(dead.any()) else None, step=self.done)
            loss.total.backward()
            with torch.no_grad():
                active = any_over_ranks(self.sae.fired(loss.code))
                self.silent = silent.masked_fill_(active, 0)
                self.sae.update_threshold_(loss.code)
        self.ranks.average_gradients(self.sae)
        norm = self.optimizer.step(lr)
        for p in self.sae.parameters():
            p.grad = None  # its memory goes back to where the next step takes its own from
        self.done += 1
        self.sae.started = True
        return StepResult(x, _detached(loss), lr, norm)

    def _next(self) -> Any:
        try:
            return next(self._batches)  # type: ignore[arg-type]
        except StopIteration:
            raise InvalidArgumentError(
                f"[train] source must have batches for all {self.config.total_steps} steps, got "
                f"{self.done}. Ask for fewer steps"
            ) from None

    def _schedule(self) -> None:
        """Set what the autoencoder selects and punishes by in the coming step."""
        if self.k is not None and self.config.k_start is not None:
            self.sae.k = self.config.k_at(self.done, k=self.k)
        if self.config.penalty_warmup_steps:
            self.sae.sparsity_scale = self.config.penalty_at(self.done)

    def settle(self) -> None:
        """Give the autoencoder back what schedules changed, and the mode of inference."""
        if self.k is not None:
            self.sae.k = self.k
        if self.config.penalty_warmup_steps:
            self.sae.sparsity_scale = 1.0
        self.sae.eval()

    @contextlib.contextmanager
    def _random_numbers(self) -> Iterator[None]:
        """Draw from this run's own numbers; those of the program are as if nothing happened."""
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._random)
            yield
            self._random = torch.get_rng_state()

    # ---- looking at it -----------------------------------------------------------------------

    @property
    def tokens(self) -> int:
        """Rows that were trained on, by all processes."""
        return self.done * self.config.batch_size

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def metrics(self, result: StepResult) -> dict[str, float]:
        """Return what a log says of a step.

        ``loss`` and its ``loss.TERM`` where there are several; ``explained_variance``, of the
        batch; ``l0``, latents other than 0 for each row; ``dead``, the part of the latents that
        were silent for long; ``lr``; ``k``; ``grad_norm`` where it is clipped.
        """
        x, loss = result.x, result.loss
        with self.ranks.joined():
            mean = over_ranks(x.double().mean(dim=0)) / rank_count()
        active = float((loss.code.values != 0).sum())
        sums = self.ranks.sum([*_errors(x, loss.reconstruction, mean), active, float(x.shape[0])])
        values = {"loss": float(loss.total)}
        if len(loss.terms) > 1:
            values |= {f"loss.{name}": float(term) for name, term in loss.terms.items()}
        values = dict(zip(values, self.ranks.mean(list(values.values())), strict=True))
        found = {"step": float(self.done), "tokens": float(self.tokens)} | values
        found["explained_variance"] = _explained(sums[0], sums[1])
        found["l0"] = sums[2] / sums[3]
        found["dead"] = float((self.silent >= self.config.dead_after_tokens).double().mean())
        found["lr"] = result.lr
        if self.k is not None:
            found["k"] = float(self.sae.k)
        if result.grad_norm is not None:
            found["grad_norm"] = result.grad_norm
        return found

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def evaluate(self, rows: Any) -> dict[str, float]:
        """Return how rows that were not trained on come back, by the rule of inference.

        Parameters
        ----------
        rows : tensor (m, d)

        Returns
        -------
        dict of str to float
            ``held_out.explained_variance``, ``1 - sum |x - x̂|^2 / sum |x - mean|^2`` with the mean
            of these rows; ``held_out.mse``, the mean of the squares; ``held_out.l0``.
        """
        rows = torch.as_tensor(rows)
        if rows.dim() != 2 or rows.shape[0] == 0:
            raise InvalidArgumentError(
                f"[train] held_out must be rows (m, d), got shape {tuple(rows.shape)}"
            )
        training = self.sae.training
        self.sae.eval()
        mean = rows.double().mean(dim=0)
        error = variation = active = 0.0
        for x in rows.split(self.config.batch_size):
            estimate, code = self.sae(x)
            some = _errors(x, estimate, mean)
            error, variation = error + some[0], variation + some[1]
            active += float((code.values != 0).sum())
        self.sae.train(training)
        return {
            "held_out.explained_variance": _explained(error, variation),
            "held_out.mse": error / rows.numel(),
            "held_out.l0": active / rows.shape[0],
        }

    # ---- state -------------------------------------------------------------------------------

    def checkpoint(self) -> Checkpoint:
        """Return all that it takes to go on from here, in another process or on another day."""
        about = {
            "architecture": self.sae.architecture,
            "step": self.done,
            "tokens": self.tokens,
            "config": self.config.to_dict(),
            "data": self.source.identity,
        }
        return Checkpoint(self._tensors(), about)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on where a checkpoint was made, to the bit as if there had been no break.

        Raises
        ------
        InvalidArgumentError
            It is of another architecture, shape, data or settings.
        """
        require_architecture(checkpoint, self.sae.architecture)
        require_shapes(self._tensors(), checkpoint.tensors)
        for name, now in (("data", self.source.identity), ("config", self.config.to_dict())):
            if (before := checkpoint.about[name]) != now:
                raise InvalidArgumentError(
                    f"[train] checkpoint must be of the same {name}, got {_difference(before, now)}"
                )
        parts: dict[str, dict[str, Any]] = {"sae": {}, "adam": {}, "trainer": {}}
        for name, x in checkpoint.tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = x
        self.sae.load_state_dict(parts["sae"])
        self.optimizer.load(parts["adam"])
        self.silent = parts["trainer"]["silent"].clone()
        self._random = parts["trainer"]["random"].clone()
        self.done = int(checkpoint.about["step"])
        self._batches = self.source.open(self.done)
        self.sae.started = True
        self.ranks.copy_from_first(self.sae)

    def _tensors(self) -> dict[str, Any]:
        found = {f"sae.{name}": x for name, x in self.sae.state_dict().items()}
        found |= {f"adam.{name}": x for name, x in self.optimizer.tensors().items()}
        return found | {"trainer.silent": self.silent, "trainer.random": self._random}


def _errors(x: Any, estimate: Any, mean: Any) -> list[float]:
    """Return the sums of squares of x - estimate and of x - mean."""
    x = x.double()
    return [float((x - estimate).square().sum()), float((x - mean).square().sum())]


def _detached(loss: LossTerms) -> LossTerms:
    """Return the numbers alone: what led to them goes."""
    return LossTerms(
        loss.total.detach(),
        {name: term.detach() for name, term in loss.terms.items()},
        loss.reconstruction.detach(),
        loss.code._replace(values=loss.code.values.detach()),
    )


def _explained(error: float, variation: float) -> float:
    return 1 - error / variation if variation > 0 else float("nan")


def _difference(before: Any, now: Any) -> str:
    if not isinstance(before, dict) or not isinstance(now, dict):
        return f"{before!r}, not {now!r}"
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return ", ".join(f"{key} {before.get(key)!r}, not {now.get(key)!r}" for key in keys)
