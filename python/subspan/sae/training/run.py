"""A whole training run: folder, log, bar, checkpoints, and the trained autoencoder at the end."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from subspan.errors import InvalidArgumentError
from subspan.report.files import write_json
from subspan.report.folder import RunFolder
from subspan.sae.training.checkpoints import latest_checkpoint, write_checkpoint
from subspan.sae.training.config import TrainConfig
from subspan.sae.training.logs import LOGGERS, FileLog, Log, bar, make_logs
from subspan.sae.training.trainer import Trainer

__all__ = ["Training", "train"]

SCHEMA = "subspan.sae.training/1"
_RESULTS = ("sae", "metrics.csv", "metrics.jsonl", "checkpoint.safetensors", *LOGGERS)
Metrics = dict[str, float]


@dataclass(frozen=True)
class Training:
    """A finished run.

    Attributes
    ----------
    sae : SAE
        The module that was trained.
    metrics : dict of str to float
        Of the last line of the log.
    path : Path or None
        The folder.
    """

    sae: Any = field(repr=False)
    metrics: Metrics
    path: Path | None


def train(
    sae: Any,
    source: Any,
    config: TrainConfig | None = None,
    *,
    site: Any = None,
    exclude: Any = None,
    held_out: Any = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] | bool | None = None,
    on_metrics: Callable[[Mapping[str, float]], None] | None = None,
    loggers: Iterable[str] = (),
    group: Any = None,
    **settings: Any,
) -> Training:
    """Train a sparse autoencoder in place.

    Parameters
    ----------
    sae : SAE
        As `make_sae` returns it.
    source : ActivationStore, array (n, d) or iterable of arrays (batch_size, d)
        Stores and arrays are shuffled anew in every epoch; an iterable must give the same batches
        again if the run is to be resumed.
    config : TrainConfig, optional
        The settings; or give its fields as further arguments.
    site : str, optional
        Of a store with several.
    exclude : OutlierRule or bool array (n,), optional
        Rows that are never drawn, such as outlier tokens.
    held_out : tensor (m, d), optional
        Rows for evaluations, every ``eval_every`` steps and at the end.
    out : path, optional
        New or empty folder, or one with an interrupted run of the same settings, which goes on.
        Without one nothing is written.
    resume, overwrite : bool
        Insist on an interrupted run; replace whatever run is there.
    progress : bool or callable, optional
        True: a bar with the latest metrics. Else called as ``progress("training", done, total)``.
    on_metrics : callable, optional
        Called with each line of the log.
    loggers : iterable of str
        "tensorboard", "wandb".
    group : torch.distributed.ProcessGroup, optional
        See `Trainer`. The first process writes.
    **settings
        Fields of `TrainConfig`.

    Returns
    -------
    Training

    Raises
    ------
    InvalidArgumentError
        Settings do not fit each other, the autoencoder or the data; rows are not finite.
    OutputError
        The folder cannot be used, or the disk is full. The last checkpoint stays, so the same call
        goes on from there.
    UnsupportedError
        A logger is not installed.

    Notes
    -----
    One seed, one result: the bits depend neither on the number of threads nor on interruptions.
    While it works, the folder has ``.run`` with ``metrics.csv``, ``metrics.jsonl`` and checkpoints;
    at the end the folder itself has these two, the last checkpoint, ``sae`` (see
    `Autoencoder.load`) and ``training.json``.

    Examples
    --------
    >>> import torch
    >>> from subspan.sae import TopKSAE, train
    >>> x = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0))
    >>> done = train(TopKSAE(8, 32, k=4), x, steps=200, batch_size=100, lr=1e-2, log_every=100)
    >>> done.metrics["explained_variance"] > 0.5
    True
    """
    config = _settings(config, settings)
    trainer = Trainer(sae, source, config, site=site, exclude=exclude, group=group)
    folder = None
    if out is not None:
        folder = RunFolder(out, kind="sae train", main="training.json", results=_RESULTS)
        if trainer.ranks.rank == 0:
            folder.check(resume=resume, overwrite=overwrite)
    elif resume or overwrite or tuple(loggers):
        raise InvalidArgumentError(
            "[train] out must be given with resume, overwrite or loggers, got None"
        )
    first = trainer.ranks.rank == 0
    with contextlib.ExitStack() as stack:
        listeners = _Listeners([], on_metrics, _advance(stack, progress, config.total_steps))
        if folder is not None:
            _enter(stack, folder, trainer, overwrite=overwrite)
        if folder is not None and first:
            log = FileLog(folder.work, step=trainer.done)
            listeners.logs = [log, *make_logs(loggers, folder.work, config.to_dict())]
            listeners.last = dict(log.rows[-1]) if log.rows else {}
        for each in listeners.logs:
            stack.callback(each.close)
        stack.callback(trainer.settle)
        _loop(trainer, held_out, folder.work if folder is not None and first else None, listeners)
        trainer.settle()
        if folder is not None and first:
            _publish(folder, trainer, listeners.last)
    return Training(sae, listeners.last, None if folder is None else folder.path)


def _settings(config: TrainConfig | None, settings: dict[str, Any]) -> TrainConfig:
    if config is None:
        return TrainConfig(**settings)
    if settings:
        raise InvalidArgumentError(
            "[train] config must be left out where settings are given, got both "
            f"({', '.join(settings)})"
        )
    return config


def _enter(
    stack: contextlib.ExitStack, folder: RunFolder, trainer: Trainer, *, overwrite: bool
) -> None:
    """Take the folder, and go on with the run that lies in it if there is one."""
    going_on = False
    if trainer.ranks.rank == 0:
        sae = trainer.sae
        identity = {
            "schema": SCHEMA,
            "architecture": sae.architecture,
            "sae": str(sae),
            "data": trainer.source.identity,
            **trainer.config.to_dict(),
        }
        going_on = stack.enter_context(folder.held(identity, overwrite=overwrite))
    if trainer.ranks.sum([float(going_on)])[0]:  # which also waits for the first process
        checkpoint = latest_checkpoint(folder.work)
        if checkpoint is not None:
            trainer.restore(checkpoint)


class _Listeners:
    """Whoever wants to hear how it goes: files, dashboards, a bar, the caller."""

    def __init__(self, logs: list[Log], on_metrics: Any, advance: Any) -> None:
        self.logs, self.on_metrics, self.advance = logs, on_metrics, advance
        self.last: Metrics = {}

    def tell(self, metrics: Metrics) -> None:
        """Pass on the metrics of a step."""
        self.last = metrics
        for log in self.logs:
            log.write(metrics)
        if self.on_metrics is not None:
            self.on_metrics(metrics)


def _advance(stack: contextlib.ExitStack, progress: Any, total: int) -> Any:
    if progress is None or progress is False:
        return lambda _done, _metrics: None
    if progress is True:
        return stack.enter_context(bar(total))
    return lambda done, _metrics: progress("training", done, total)


def _loop(trainer: Trainer, held_out: Any, folder: Path | None, listeners: _Listeners) -> None:
    """Make all steps that are left; checkpoints go into the folder."""
    config, total = trainer.config, trainer.config.total_steps
    since, before = time.perf_counter(), trainer.done
    listeners.advance(trainer.done, None)
    while trainer.done < total:
        result = trainer.step()
        done, metrics = trainer.done, None
        evaluated = held_out is not None and _due(done, config.eval_every, total)
        if evaluated or _due(done, config.log_every, total):
            metrics = trainer.metrics(result)
            now = time.perf_counter()
            metrics["tokens_per_second"] = (done - before) * config.batch_size / (now - since)
            since, before = now, done
            if evaluated:
                metrics |= trainer.evaluate(held_out)
            listeners.tell(metrics)  # before the checkpoint, behind which no line may be missing
        del result
        if folder is not None and _due(done, config.checkpoint_every, total):
            write_checkpoint(folder, trainer.checkpoint(), keep=config.keep_checkpoints)
        listeners.advance(done, metrics)


def _due(done: int, every: int, total: int) -> bool:
    return done == total or (every > 0 and done % every == 0)


def _publish(folder: RunFolder, trainer: Trainer, last: Metrics) -> None:
    """Put the results into the folder, and take away what was only for going on."""
    stage = folder.fresh_stage()
    trainer.sae.export().save(stage / "sae")
    for name in ("metrics.csv", "metrics.jsonl"):
        (stage / name).write_bytes((folder.work / name).read_bytes())
    latest = max(folder.work.glob("checkpoint-*.safetensors"))
    try:  # it also stays where it is, for a run that is killed before the end of this
        os.link(latest, stage / "checkpoint.safetensors")
    except OSError:
        shutil.copyfile(latest, stage / "checkpoint.safetensors")
    for name in LOGGERS:
        if (folder.work / name).exists():
            (folder.work / name).rename(stage / name)
    facts = {
        "schema": SCHEMA,
        "architecture": trainer.sae.architecture,
        "sae": str(trainer.sae),
        "data": trainer.source.identity,
        "config": trainer.config.to_dict(),
        "steps": trainer.done,
        "tokens": trainer.tokens,
        "metrics": {name: x if math.isfinite(x) else None for name, x in last.items()},
    }
    write_json(stage / "training.json", facts)
    folder.publish()
