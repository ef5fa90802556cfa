"""Training: bits, optimisers, dead latents, schedules, sources, metrics, refusals."""

import copy

import numpy as np
import pytest
from subspan.errors import DtypeError, InvalidArgumentError

torch = pytest.importorskip("torch")
sae_module = pytest.importorskip("subspan.sae")
from subspan.activations import OutlierRule  # noqa: E402
from subspan.sae import (  # noqa: E402
    BatchTopKSAE,
    TopKSAE,
    TrainConfig,
    Trainer,
    make_sae,
    train,
)
from subspan.sae.modules.make import CLASSES  # noqa: E402

D, N, K = 12, 40, 4


@pytest.fixture(scope="module")
def rows():
    """Sums of a few directions, so that there is something to find."""
    generator = torch.Generator().manual_seed(5)
    directions = torch.nn.functional.normalize(torch.randn(N, D, generator=generator), dim=1)
    chosen = torch.rand(1500, N, generator=generator).topk(3, dim=1).indices
    values = torch.rand(1500, 3, generator=generator) + 0.5
    return (values[..., None] * directions[chosen]).sum(1) + 0.3


def config(**change):
    given = {"steps": 12, "batch_size": 50, "lr": 3e-3, "init_rows": 200, "dead_after_tokens": 150}
    return TrainConfig(**given | change)


def sae(kind=TopKSAE, **options):
    return kind(D, N, **{"k": K, "seed": 3} | options)


def partly_dead():
    """Some latents are far from ever being active."""
    made = sae()
    with torch.no_grad():
        made.b_enc[:7] = -50
    return made


def state(trainer):
    return {name: x.clone() for name, x in trainer.checkpoint().tensors.items()}


def run(rows, steps=None, make=sae, **change):
    trainer = Trainer(make(), rows, config(**change))
    for _ in range(trainer.config.total_steps if steps is None else steps):
        trainer.step()
    return trainer


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


# ---- one seed, one result ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", [TopKSAE, BatchTopKSAE])
def test_bits_do_not_depend_on_threads_or_the_run(kind, rows, threads):
    results = []
    before = torch.get_num_threads()
    for n in (1, 2, 3):
        threads(n)
        torch.set_num_threads(n)
        torch.rand(n)  # what the program draws meanwhile is nothing to it
        results.append(state(run(rows, make=lambda: sae(kind))))
    torch.set_num_threads(before)
    for other in results[1:]:
        same(results[0], other)


@pytest.mark.parametrize("architecture", sorted({*CLASSES} - {"topk", "batch_topk"}))
def test_every_architecture(architecture, rows, threads):
    """The same bits for any number of threads, and for fused and torch's Adam but for rounding."""
    options = {"sparsity": 0.01} if architecture in {"jumprelu", "relu", "gated"} else {"k": K}

    def make():
        return make_sae(architecture, D, N, dtype="float64", seed=3, **options)

    results = {}
    for n, optimizer in ((1, "fused"), (3, "fused"), (2, "torch")):
        threads(n)
        change = {"steps": 5, "optimizer": optimizer, "init_rows": 200}
        results[n] = state(run(rows.double(), make=make, **change))
    same(results[1], results[3])
    for name, x in results[1].items():
        assert torch.allclose(x.double(), results[2][name].double(), rtol=0, atol=1e-10), name
    assert torch.isfinite(results[1]["sae.w_dec"]).all()


def test_penalties_are_warmed_up(rows):
    made = make_sae("relu", D, N, sparsity=0.5)
    trainer = Trainer(made, rows, config(penalty_warmup_steps=4))
    ratios = []
    for _ in range(6):
        loss = trainer.step().loss
        ratios.append(made.sparsity_scale)
        assert (float(loss.terms["l1"]) == 0) == (ratios[-1] == 0)
    assert ratios == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    with pytest.raises(InvalidArgumentError, match="penalty_warmup_steps must be 0 for 'topk'"):
        Trainer(sae(), rows, config(penalty_warmup_steps=4))


def test_the_random_numbers_of_the_program_stay_its_own(rows):
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    run(rows, steps=2)
    assert torch.equal(torch.rand(3), wanted)


def test_another_seed_is_another_order(rows):
    first, second = (state(run(rows, seed=seed, init=None)) for seed in (0, 1))
    assert not torch.equal(first["sae.w_dec"], second["sae.w_dec"])


@pytest.mark.parametrize("stop", [1, 7])
def test_a_restored_run_goes_on_as_if_nothing_had_happened(stop, rows):
    whole = run(rows)
    part = run(rows, steps=stop)
    saved = copy.deepcopy(part.checkpoint())
    part.step()  # what comes after the checkpoint is forgotten
    other = Trainer(sae(seed=99), rows, config())
    other.restore(saved)
    while other.done < 12:
        other.step()
    same(state(whole), state(other))


# ---- optimisers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [{}, {"grad_clip": 0.01}, {"weight_decay": 0.1}, {"lr_schedule": "cosine", "warmup_steps": 4}],
)
def test_fused_and_torch_agree(change, rows):
    """In float64, so that a difference is one of the method."""
    results = []
    for optimizer in ("fused", "torch"):
        make = lambda: sae(dtype="float64")  # noqa: E731
        trainer = run(rows.double(), make=make, optimizer=optimizer, **change)
        results.append(state(trainer))
    for name, x in results[0].items():
        assert torch.allclose(x.double(), results[1][name].double(), rtol=0, atol=1e-11), name


def test_a_checkpoint_of_one_optimiser_is_one_of_the_other(rows):
    tensors = run(rows, steps=5).optimizer.tensors()
    trainer = run(rows, steps=1, optimizer="torch")
    trainer.optimizer.load(tensors)
    same(trainer.optimizer.tensors(), tensors)


def test_unit_rows_stay_unit_rows_and_free_ones_do_not(rows):
    for unit_norm in (True, False):
        trainer = run(rows, make=lambda unit_norm=unit_norm: sae(unit_norm=unit_norm))
        norms = trainer.sae.w_dec.detach().double().norm(dim=1)
        assert ((norms - 1).abs().max() < 1e-6) == unit_norm


def test_clipping_reports_the_norm_before_it(rows):
    trainer = Trainer(sae(), rows, config(grad_clip=1e-3))
    result = trainer.step()
    assert result.grad_norm > 1e-3
    assert trainer.metrics(result)["grad_norm"] == result.grad_norm
    # Adam's first step is the same for any length of the gradient: the running mean is not.
    m = trainer.optimizer.tensors()
    total = sum(float(x.double().square().sum()) for name, x in m.items() if name[:2] == "m.")
    assert np.isclose(total**0.5, 0.1 * 1e-3, rtol=1e-3)


# ---- what is counted --------------------------------------------------------------------------


def test_silence_is_counted_in_rows_and_ends_with_a_value(rows):
    trainer = Trainer(partly_dead(), rows, config(init=None))
    wanted = torch.zeros(N, dtype=torch.int64)
    for _ in range(6):
        result = trainer.step()
        wanted += 50
        values, indices = result.loss.code
        wanted[indices[values > 0]] = 0
        assert torch.equal(trainer.silent, wanted)
    found = trainer.metrics(result)["dead"]
    assert found == float((wanted >= 150).double().mean())
    assert 0 < found < 1


def test_the_loss_hears_of_the_latents_that_will_be_dead_unless_they_are_active(rows):
    trainer, heard = Trainer(partly_dead(), rows, config(init=None)), []
    loss = trainer.sae.loss

    def listening(x, *, dead, step):
        heard.append((None if dead is None else dead.clone(), step))
        return loss(x, dead=dead, step=step)

    trainer.sae.loss = listening
    for number in range(6):
        wanted = trainer.silent + 50 >= 150
        trainer.step()
        dead, step = heard[-1]
        assert step == number
        assert (dead is None and not wanted.any()) or torch.equal(dead, wanted)
    assert heard[0][0] is None
    assert heard[-1][0] is not None


def test_k_is_annealed_and_comes_back(rows):
    trainer, seen = Trainer(sae(), rows, config(k_start=12, k_steps=4)), []
    for _ in range(6):
        seen.append(trainer.step().loss.code.values.shape[1])
    assert seen == [12, 10, 8, 6, 4, 4]
    done = train(sae(), rows, config(steps=2, k_start=12, k_steps=8))
    assert done.sae.k == K
    assert done.metrics["k"] == 11


def test_what_was_trained_or_loaded_is_not_begun_anew(rows):
    first = train(sae(), rows, config(), held_out=rows[:200])
    again = train(first.sae, rows, config(steps=1, lr=1e-9), held_out=rows[:200])
    loaded = TopKSAE.from_autoencoder(first.sae.export())
    other = train(loaded, rows, config(steps=1, lr=1e-9), held_out=rows[:200])
    name = "held_out.explained_variance"
    for done in (again, other):
        assert np.isclose(done.metrics[name], first.metrics[name], atol=1e-5)
    anew = train(first.sae, rows, config(steps=1, lr=1e-9, init="tied"), held_out=rows[:200])
    assert anew.metrics[name] < first.metrics[name] - 0.05


def test_an_interrupted_schedule_leaves_nothing_behind(rows):
    made = sae()

    def stop(_stage, done, _total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(made, rows, config(k_start=12, k_steps=8), progress=stop)
    assert made.k == K
    assert not made.training


def test_metrics_are_those_of_the_definitions(rows):
    trainer = Trainer(sae(), rows, config())
    result = trainer.step()
    found = trainer.metrics(result)
    x, estimate = result.x.double(), result.loss.reconstruction.double()
    wanted = 1 - (x - estimate).square().sum() / (x - x.mean(0)).square().sum()
    assert np.isclose(found["explained_variance"], float(wanted), rtol=1e-12)
    assert found["l0"] == float((result.loss.code.values != 0).sum()) / 50
    assert found["loss"] == float(result.loss.total)
    assert found["lr"] == 3e-3
    assert (found["step"], found["tokens"], found["k"]) == (1, 50, K)


def test_held_out_rows_are_judged_in_parts_as_in_one(rows):
    trainer = run(rows, steps=8)
    found = trainer.evaluate(rows[:170])
    assert trainer.sae.training
    x = rows[:170].double()
    estimate = trainer.sae.eval()(rows[:170])[0].detach().double()
    error = (x - estimate).square()
    wanted = 1 - error.sum() / (x - x.mean(0)).square().sum()
    assert np.isclose(found["held_out.explained_variance"], float(wanted), rtol=1e-9)
    assert np.isclose(found["held_out.mse"], float(error.mean()), rtol=1e-9)
    assert 0 < found["held_out.l0"] <= K


def test_training_finds_something(rows):
    done = train(sae(), rows, config(steps=150, lr=1e-2), held_out=rows[:500])
    assert done.metrics["held_out.explained_variance"] > 0.8
    assert not done.sae.training


# ---- sources ----------------------------------------------------------------------------------


def test_arrays_of_either_library_give_the_same_run(rows):
    same(state(run(rows)), state(run(rows.numpy())))


def test_an_iterable_gives_its_batches_in_order(rows):
    seen = []

    def batches():
        for batch in rows.split(50):
            seen.append(batch)
            yield batch.numpy()

    trainer = Trainer(sae(), batches(), config(steps=3))
    used = [trainer.step().x for _ in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(used, seen, strict=False))
    assert len(seen) == 4  # the first four were looked at to begin with


def test_an_iterable_is_resumed_behind_what_was_used(rows):
    batches = list(rows.split(50))
    whole, part = run(batches), run(batches, steps=5)
    other = Trainer(sae(), batches, config())
    other.restore(part.checkpoint())
    while other.done < 12:
        other.step()
    same(state(whole), state(other))


def test_excluded_rows_are_never_drawn(rows):
    loud = rows.clone()
    loud[::10] *= 1000
    for exclude in (OutlierRule(), (torch.arange(1500) % 10 == 0).numpy()):
        trainer = Trainer(sae(), loud, config(steps=30), exclude=exclude)
        largest = max(float(trainer.step().x.abs().max()) for _ in range(30))
        assert largest < 100


# ---- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "options", "kind", "text"),
    [
        (7, {}, DtypeError, "source must be rows"),
        ("rows", {}, DtypeError, "source must be rows"),
        (np.ones((100, D)), {"site": "a"}, InvalidArgumentError, "site must be left out"),
        ([np.ones((50, D))], {"exclude": OutlierRule()}, InvalidArgumentError, "exclude must be"),
    ],
)
def test_refused_sources(source, options, kind, text):
    with pytest.raises(kind, match=r"\[train\] " + text):
        Trainer(sae(), source, config(), **options)


def test_rows_that_are_wrong_are_refused_when_they_come(rows):
    with pytest.raises(InvalidArgumentError, match=r"shape \(\.\.\., 12\)"):
        run(rows[:, :5], steps=1)
    with pytest.raises(InvalidArgumentError, match=r"\(50, d\) for this batch_size, got Tensor"):
        run([rows[:30]], steps=1)
    with pytest.raises(InvalidArgumentError, match="batch_size"):
        run(rows[:30], steps=1)
    with pytest.raises(InvalidArgumentError, match="batches for all 12 steps, got 2"):
        run([rows[:50], rows[:50]])
    bad = rows.clone()
    bad[:, 3] = torch.nan
    with pytest.raises(InvalidArgumentError, match="finite"):
        run(bad, steps=1, init=None)


def test_settings_that_do_not_fit(rows):
    with pytest.raises(DtypeError, match="config must be a TrainConfig, got dict"):
        Trainer(sae(), rows, {"steps": 3})
    with pytest.raises(InvalidArgumentError, match="k_start must be in"):
        Trainer(sae(), rows, config(k_start=N + 1, k_steps=2))
    with pytest.raises(InvalidArgumentError, match="config must be left out where settings"):
        train(sae(), rows, config(), lr=1.0)
    with pytest.raises(InvalidArgumentError, match="out must be given with resume"):
        train(sae(), rows, config(), resume=True)
    trainer = run(rows)
    with pytest.raises(InvalidArgumentError, match="at most 12 times"):
        trainer.step()
    with pytest.raises(InvalidArgumentError, match=r"held_out must be rows \(m, d\)"):
        trainer.evaluate(rows[0])


def test_a_checkpoint_of_something_else_is_refused(rows):
    saved = run(rows, steps=1).checkpoint()
    for other, text in (
        (
            Trainer(sae(BatchTopKSAE), rows, config()),
            "'batch_topk', got one of 'topk'",
        ),
        (Trainer(TopKSAE(D, 30, k=K), rows, config()), r"of shape \(30"),
        (Trainer(sae(), rows, config(lr=1.0)), "same config, got lr 0.003, not 1.0"),
        (Trainer(sae(), rows + 1, config()), "same data"),
    ):
        with pytest.raises(InvalidArgumentError, match=text):
            other.restore(saved)
