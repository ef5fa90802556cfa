"""Schedules and settings of training: formulas, ends, refusals; nothing here needs torch."""

import dataclasses
import json
import math

import pytest
from subspan.errors import DtypeError, InvalidArgumentError
from subspan.sae.training.config import TrainConfig
from subspan.sae.training.schedules import default_lr, k_at, lr_factor, penalty_factor


def config(**change):
    return TrainConfig(**{"steps": 100, "batch_size": 10} | change)


def test_the_default_rate_falls_with_the_root_of_the_latents():
    assert default_lr(2**14) == 2e-4
    assert math.isclose(default_lr(24576), 2e-4 / math.sqrt(1.5))
    assert config().lr_at(5, n_latents=2**16) == 1e-4


def test_a_constant_rate():
    assert {lr_factor(step, 7) for step in range(7)} == {1.0}


def test_rise_and_tail():
    factors = [lr_factor(step, 20, warmup=5, decay=4) for step in range(20)]
    assert factors[:5] == [1 / 5, 2 / 5, 3 / 5, 4 / 5, 1.0]
    assert set(factors[5:17]) == {1.0}
    assert factors[17:] == [3 / 4, 2 / 4, 1 / 4]  # 0 would come with a step 20


def test_cosine():
    factors = [lr_factor(step, 50, schedule="cosine", warmup=10, end=0.1) for step in range(50)]
    assert factors[:10] == [(step + 1) / 10 for step in range(10)]
    for step in range(10, 50):
        wanted = 0.1 + 0.9 * (1 + math.cos(math.pi * (step - 10) / 40)) / 2
        assert math.isclose(factors[step], wanted, rel_tol=1e-14)
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert min(factors) == factors[0] or min(factors) > 0.1


def test_a_tail_may_end_above_zero():
    assert lr_factor(9, 10, decay=5, end=0.5) == 0.5 + 0.5 / 5


@pytest.mark.parametrize(
    ("change", "kind", "text"),
    [
        ({"step": 10}, InvalidArgumentError, r"step must be in 0\.\.9, got 10"),
        ({"steps": 0}, InvalidArgumentError, "steps must be >= 1"),
        (
            {"schedule": "sine"},
            InvalidArgumentError,
            "schedule must be one of 'constant', 'cosine'",
        ),
        ({"warmup": 11}, InvalidArgumentError, r"warmup must be in 0\.\.10"),
        ({"decay": -1}, InvalidArgumentError, r"decay must be in 0\.\.10"),
        ({"end": 1.5}, InvalidArgumentError, "end must be in"),
    ],
)
def test_refused_schedules(change, kind, text):
    given = {"step": 3, "steps": 10} | change
    with pytest.raises(kind, match=text):
        lr_factor(given.pop("step"), given.pop("steps"), **given)


def test_k_comes_down_in_equal_parts():
    assert [k_at(step, k=8, start=32, steps=6) for step in range(8)] == [
        32,
        28,
        24,
        20,
        16,
        12,
        8,
        8,
    ]
    assert k_at(1, k=2.0, start=3, steps=2) == 2.5
    assert isinstance(k_at(1, k=3, start=10, steps=3), int)
    assert k_at(0, k=4, start=9, steps=0) == 4
    assert config().k_at(0, k=4) == 4
    assert config(k_start=16, k_steps=4).k_at(2, k=4) == 10


def test_penalties_grow_from_nothing():
    assert [penalty_factor(step, warmup=2) for step in range(4)] == [0.0, 0.5, 1.0, 1.0]
    assert penalty_factor(0, warmup=0) == 1.0
    assert config(penalty_warmup_steps=4).penalty_at(1) == 0.25


def test_lengths_in_tokens_are_whole_batches():
    assert TrainConfig(tokens=99, batch_size=10).total_steps == 9
    assert TrainConfig(steps=7, batch_size=10).total_steps == 7


def test_settings_are_json_and_frozen():
    given = config(lr=1e-3, k_start=4.0, init=None)
    again = json.loads(json.dumps(given.to_dict()))
    assert TrainConfig(**again | {"betas": tuple(again["betas"])}) == given
    with pytest.raises(dataclasses.FrozenInstanceError):
        given.lr = 1.0


@pytest.mark.parametrize(
    ("change", "kind", "text"),
    [
        ({"tokens": 100}, InvalidArgumentError, "exactly one of steps and tokens .* got both"),
        ({"steps": None}, InvalidArgumentError, "exactly one of steps and tokens .* got neither"),
        ({"steps": None, "tokens": 9}, InvalidArgumentError, "tokens must be >= 10, got 9"),
        ({"steps": 0}, InvalidArgumentError, "steps must be >= 1, got 0"),
        ({"steps": 2.5}, DtypeError, "steps must be an integer"),
        ({"batch_size": 0}, InvalidArgumentError, "batch_size must be >= 1"),
        ({"lr": 0.0}, InvalidArgumentError, "lr must be in"),
        ({"lr": math.nan}, InvalidArgumentError, "lr must be in"),
        ({"lr_schedule": "step"}, InvalidArgumentError, "lr_schedule must be one of"),
        ({"warmup_steps": 101}, InvalidArgumentError, r"warmup_steps must be in 0\.\.100"),
        ({"decay_steps": -1}, InvalidArgumentError, "decay_steps must be >= 0"),
        ({"lr_end": 2.0}, InvalidArgumentError, "lr_end must be in"),
        ({"optimizer": "sgd"}, InvalidArgumentError, "optimizer must be one of 'fused', 'torch'"),
        ({"betas": (0.9, 1.0)}, InvalidArgumentError, r"betas\[1\] must be in"),
        ({"betas": 0.9}, DtypeError, "betas must be two numbers"),
        ({"grad_clip": -1.0}, InvalidArgumentError, "grad_clip must be in"),
        ({"k_steps": 5}, InvalidArgumentError, "k_start must be given with k_steps"),
        ({"init": "pca"}, InvalidArgumentError, "init must be one of"),
        ({"init_rank": 0}, InvalidArgumentError, "init_rank must be >= 1"),
        ({"dead_after_tokens": 0}, InvalidArgumentError, "dead_after_tokens must be >= 1"),
        ({"keep_checkpoints": 0}, InvalidArgumentError, "keep_checkpoints must be >= 1"),
        ({"seed": -1}, InvalidArgumentError, "seed must be >= 0"),
    ],
)
def test_refused_settings(change, kind, text):
    with pytest.raises(kind, match=r"\[TrainConfig\] .*" + text):
        config(**change)
