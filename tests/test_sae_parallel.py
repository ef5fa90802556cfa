"""Two processes that share each batch end where one does with all of it; what they agree on."""

import math
import os
import socket
import sys
from pathlib import Path

import pytest
from subspan.errors import InvalidArgumentError

torch = pytest.importorskip("torch")
from subspan.sae import TrainConfig, Trainer, make_sae, train  # noqa: E402
from subspan.sae.training.parallel import (  # noqa: E402
    Ranks,
    any_over_ranks,
    batch_topk_encode,
    least_positive,
    over_ranks,
    rank_count,
)

D, N = 10, 30
ROWS = torch.randn(600, D, generator=torch.Generator().manual_seed(2)).double()
SETTINGS = {"steps": 8, "batch_size": 60, "lr": 1e-2, "init": None, "dead_after_tokens": 120}
KINDS = ("topk", "batch_topk", "matryoshka", "mutual_choice", "jumprelu", "orthogonal")


def module(kind):
    """Some latents are far from ever being active, so that there is an auxiliary loss."""
    options = {"l0_target": 4.0, "bandwidth": 0.5} if kind == "jumprelu" else {"k": 3}
    made = make_sae(kind, D, N, dtype="float64", seed=1, **options)
    with torch.no_grad():
        made.b_enc[:5] = -3
    return made


# The same program for each of the processes; it prints nothing and leaves its results in a folder.
PROGRAM = """
import os, sys
import torch
from torch import distributed
import test_sae_parallel as here
folder, rank = sys.argv[1], int(sys.argv[2])
distributed.init_process_group("gloo", init_method="file://" + folder + "/meeting", rank=rank,
                               world_size=2)
group = distributed.group.WORLD
for kind in here.KINDS:
    trained = here.trained(kind, group=group, **here.SETTINGS)
    torch.save(trained, f"{folder}/{kind}-{rank}.pt")
torch.save(here.agreed(group), f"{folder}/agreed-{rank}.pt")
here.resumed(folder + "/run", group)
distributed.destroy_process_group()
"""


def trained(kind, group=None, **settings):
    """Weights, what is silent, and the metrics of each step."""
    trainer, lines = Trainer(module(kind), ROWS, TrainConfig(**settings), group=group), []
    while trainer.done < settings["steps"]:
        lines.append(trainer.metrics(trainer.step()))
    return dict(trainer.sae.state_dict()), trainer.silent, lines


def ties():
    """Rows with many equal values, of which those that are kept are chosen by their place."""
    x = torch.randint(-2, 3, (8, 4), generator=torch.Generator().manual_seed(0)).double()
    return x, torch.eye(4, dtype=torch.float64)


def agreed(group):
    ranks = Ranks(group)
    x, w = ties()
    found = {"outside": rank_count()}
    with ranks.joined():
        found["count"] = rank_count()
        found["sum"] = over_ranks(torch.tensor([1.0, ranks.rank]))
        found["any"] = any_over_ranks(torch.tensor([ranks.rank == 0, False, ranks.rank == 1]))
        found["least"] = least_positive(torch.tensor([-1.0, 3.0 - ranks.rank, 5.0]))
        for k in (0.5, 1, 2, 4):
            code = batch_topk_encode(ranks.share(x), w, k=k)
            found[k] = code.to_dense(4)
    return found


def resumed(out, group):
    """A run with a folder that stops after a while, and its second part."""

    def stop(_stage, done, _total):
        if done == 5:
            raise InterruptedError

    settings = SETTINGS | {"checkpoint_every": 4}
    try:
        train(module("topk"), ROWS, out=out, group=group, progress=stop, **settings)
    except InterruptedError:
        torch.distributed.barrier(group)
    train(module("topk"), ROWS, out=out, group=group, **settings)


def can_listen():
    with socket.socket() as listener:
        try:
            listener.bind(("127.0.0.1", 0))
        except OSError:
            return False
    return True


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The folder that two processes left their results in."""
    import subprocess

    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("this torch has no gloo")
    if not can_listen():
        pytest.skip("no process may listen here")
    folder = tmp_path_factory.mktemp("pair")
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "SUBSPAN_NUM_THREADS": "1",
    }
    if sys.platform.startswith("linux"):  # the name of a machine may resolve to where nobody hears
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(folder), str(rank)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [worker.communicate(timeout=120)[1] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    if any("unable to resolve" in text or "makeDevice" in text for text in errors):
        pytest.skip("gloo finds no interface here")
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(errors)
    return folder


def load(path):
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_are_as_one_with_the_joined_batch(kind, pair):
    weights, silent, lines = trained(kind, **SETTINGS)
    first, second = (load(pair / f"{kind}-{rank}.pt") for rank in range(2))
    for name, x in first[0].items():
        assert torch.equal(x, second[0][name]), name
        assert torch.allclose(x.double(), weights[name].double(), rtol=0, atol=1e-11), name
    for other in (first, second):
        assert torch.equal(other[1], silent)
        for mine, line in zip(lines, other[2], strict=True):
            assert mine.keys() == line.keys()
            assert all(math.isclose(mine[name], line[name], rel_tol=1e-9) for name in mine)
    assert kind == "jumprelu" or any("loss.auxk" in line for line in lines)


def test_what_processes_agree_on(pair):
    for rank in range(2):
        found = load(pair / f"agreed-{rank}.pt")
        assert (found["outside"], found["count"]) == (1, 2)
        assert found["sum"].tolist() == [2.0, 1.0]
        assert found["any"].tolist() == [True, False, True]
        assert found["least"] == 2.0


def test_a_selection_from_the_whole_batch_with_ties(pair):
    import subspan

    x, w = ties()
    for k in (0.5, 1, 2, 4):
        wanted = subspan.batch_topk_encode(x, w, k=k).to_dense(4)
        got = torch.cat([load(pair / f"agreed-{rank}.pt")[k] for rank in range(2)])
        assert torch.equal(got, wanted), k


def test_an_interrupted_run_of_two_goes_on(pair, tmp_path):
    from safetensors.torch import load_file

    train(module("topk"), ROWS, out=tmp_path / "one", **SETTINGS)
    one = load_file(tmp_path / "one" / "checkpoint.safetensors")
    two = load_file(pair / "run" / "checkpoint.safetensors")
    assert one.keys() == two.keys()
    for name, x in one.items():
        assert torch.allclose(x.double(), two[name].double(), rtol=0, atol=1e-11), name


def test_a_batch_must_be_shared_equally():
    ranks = Ranks()
    ranks.check_batch(7)
    ranks.size = 2
    with pytest.raises(InvalidArgumentError, match="a multiple of the number of processes, 2, got"):
        ranks.check_batch(7)
    ranks.rank = 1
    assert torch.equal(ranks.share(ROWS[:4]), ROWS[2:4])
