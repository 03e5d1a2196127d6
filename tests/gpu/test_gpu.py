"""What only a GPU can show: its batches against the CPU's, and a training step on it."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from emnist_dali import recipes
from emnist_dali.config import Affine
from emnist_dali.data.pack import pack
from emnist_dali.data.shards import Shards
from emnist_dali.loading.loader import with_backend
from emnist_dali.pipelines import resident
from emnist_dali.training import resume
from emnist_dali.training.build import Training
from emnist_dali.training.session import train
from emnist_dali.training.trainer import Trainer

from .. import dali_equalize
from ..loaders import LEVELS, assert_within_a_level, batches_of_both, kept, make_loader, whole_training

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
AFFINE = Affine(rotation=(0.2,), scale=0.1, shear=0.1, translation=0.1)


def both(shards: Shards, size: int, **changes) -> tuple[torch.Tensor, torch.Tensor]:
    return batches_of_both(shards, size, "cuda", **changes)


def assert_equalized(shards: Shards, images: np.ndarray) -> None:
    with make_loader(
        shards,
        "dali",
        batch_size=128,
        size=28,
        stats=LEVELS,
        device="cuda",
        train=False,
        indices=np.arange(len(images)),
    ) as loader:
        found = kept(loader)[0][: len(images), 0].numpy()
    np.testing.assert_array_equal(found.round(), dali_equalize.equalize(images))
    np.testing.assert_allclose(found, found.round(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("codec", ["lz4", "raw"])
def test_decode_and_equalize_are_exact(codec, drawn, tmp_path):
    pack(drawn, "small", tmp_path / "small", codec)
    assert_equalized(Shards(tmp_path / "small", "train"), drawn.parts["train"].images)


def test_decode_and_equalize_are_exact_on_real_images(real_folder, real_images, tmp_path):
    from emnist_dali.data.prepare import prepare

    folder = prepare("balanced", str(real_folder / "balanced"), tmp_path)
    assert_equalized(Shards(folder, "test"), real_images[:10_240])


@pytest.mark.parametrize("size", [32, 112])
@pytest.mark.parametrize("affine", [None, AFFINE])
def test_images_agree_within_a_grey_level(size, affine, folder):
    assert_within_a_level(*both(Shards(folder, "train"), size, affine=affine))


def test_half_images_are_the_rounded_float_images(folder):
    assert_within_a_level(*both(Shards(folder, "train"), 112, half=True))


def test_the_last_evaluation_batch_is_padded(folder):
    with make_loader(
        Shards(folder, "train"), "dali", batch_size=128, stats=LEVELS, device="cuda", train=False
    ) as loader:
        labels = torch.cat([labels for _, labels in loader])
    assert (labels >= 0).sum() == 600
    assert len(labels) == 640


def test_cpu_batches_reach_the_gpu_whole(folder):
    shards = Shards(folder, "train")
    with make_loader(shards, stats=LEVELS, device="cuda") as loader:
        gpu = [images.cpu() for images, _ in loader]
    with make_loader(shards, stats=LEVELS) as loader:
        for images, (cpu, _) in zip(gpu, loader, strict=True):
            assert torch.equal(images, cpu)


@pytest.mark.parametrize("amp", ["bf16", "fp16", "off"])
def test_a_run_trains_and_evaluates(amp, data_dir, tmp_path):
    options = {
        "source": "glyphs",
        "data_dir": str(data_dir),
        "out": str(tmp_path / amp),
        "amp": amp,
        "device": "cuda",
    }
    config = recipes.cpu("small").override({**options, "batch_size": 64, "epochs": 2})
    run = train(config)
    assert run.config().data.backend == "resident"
    assert run.best.exists()


def make_training(folder, **options) -> Training:
    """The `published` recipe, which mixes, with a small net."""
    small = {"model": "test_efficientnet", "pretrained": False, "batch_size": 64, "image_size": 32, "device": "cuda"}
    config = recipes.published("small").override({**small, **options})
    return whole_training(config, Shards(folder, "train"))


@pytest.mark.parametrize("backend", ["dali", "resident", "cpu", "synthetic"])
@pytest.mark.parametrize("optimizer", ["lion", "adamw", "muon"])
def test_the_host_waits_for_the_device_on_logging_steps_only(backend, optimizer, folder, monkeypatch):
    training = make_training(folder, backend=backend, optimizer=optimizer, compile="off")
    loop = training.trainer
    logging = Trainer._mean_loss

    def check(self, *arguments):
        torch.cuda.set_sync_debug_mode("default")
        try:
            return logging(self, *arguments)
        finally:
            torch.cuda.set_sync_debug_mode("error")

    with training:
        loop.train_epoch(training.loader)  # kernels are chosen, memory is allocated
        monkeypatch.setattr(Trainer, "_mean_loss", check)
        torch.cuda.set_sync_debug_mode("error")
        try:
            loop.begin(1)
            loop.train_epoch(training.loader)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_compiled_training_is_the_same_training(folder):
    losses = []
    for compile in ("off", "on"):
        training = make_training(folder, compile=compile)
        loop = training.trainer
        if compile == "on":
            assert loop.warm_up() > 0
        with training:
            losses.append(loop.train_epoch(training.loader)["loss"])
    # bf16 has 8 bits, and compiled kernels round in other places.
    assert np.isclose(*losses, rtol=0.02)


@pytest.mark.parametrize("optimizer", ["lion", "adamw", "adam", "sgd", "muon"])
@pytest.mark.parametrize("backend", ["dali", "resident"])
def test_a_captured_training_is_the_same_training(optimizer, backend, folder):
    losses = []
    for compile in ("off", "graph"):
        training = make_training(folder, optimizer=optimizer, backend=backend, compile=compile, accumulation=1)
        loop = training.trainer
        loop.warm_up()
        with training:
            for epoch in range(2):
                loop.begin(epoch)
                losses.append(loop.train_epoch(training.loader)["loss"])
    np.testing.assert_allclose(losses[2:], losses[:2], rtol=0.02)


def test_a_profile_names_what_ran_on_the_gpu(data_dir, tmp_path, capsys):
    options = {"source": "glyphs", "data_dir": str(data_dir), "out": str(tmp_path / "run"), "device": "cuda"}
    run = train(recipes.cpu("small").override({**options, "batch_size": 32, "epochs": 1, "profile": True}))
    assert (run.path / "trace.json.gz").exists()
    table = capsys.readouterr().out.split("operator", 1)[1].split("Trace:")[0].splitlines()[1:]
    assert len(table) == 10


def losses(folder) -> list[float]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if record["kind"] == "epoch"]


def test_a_rank_on_each_gpu(data_dir, tmp_path):
    """NCCL where there are at least two."""
    gpus = torch.cuda.device_count()
    given = {"split": "small", "source": "glyphs", "data-dir": data_dir, "recipe": "cpu", "device": "cuda"}
    given |= {"batch-size": 16 * gpus, "epochs": 2, "compile": "off", "out": tmp_path / "run"}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(gpus)]
    subprocess.run([*torchrun, "-m", "emnist_dali", "train", *words], check=True, timeout=300)
    first, second = losses(tmp_path / "run")
    assert second < first


def test_a_stopped_run_goes_on(data_dir, tmp_path):
    given = {"source": "glyphs", "data_dir": str(data_dir), "device": "cuda", "backend": "dali", "batch_size": 64}
    given |= {"epochs": 3, "compile": "off", "checkpoint_every": "4", "keep": 100, "out": str(tmp_path / "whole")}
    whole = train(recipes.cpu("small").override(given))
    shutil.copytree(whole.path, tmp_path / "part")
    checkpoints = tmp_path / "part" / "checkpoints"
    (checkpoints / "step-00000012.pt").replace(checkpoints / "last.pt")  # 3 steps into the second epoch
    part = train(*resume.load(checkpoints / "last.pt", None, {}))
    # Kernels that add in any order, and bf16's 8 bits.
    np.testing.assert_allclose(losses(part.path), losses(whole.path), rtol=0.02)


@pytest.mark.parametrize("engine", ["Triton", "torch"])
@pytest.mark.parametrize("size", [28, 32, 112])
@pytest.mark.parametrize("affine", [None, AFFINE])
@pytest.mark.parametrize("half", [False, True])
def test_batches_of_resident_images_are_the_cpus(engine, size, affine, half, folder, monkeypatch):
    if engine == "torch":
        monkeypatch.setattr(resident, "_has_triton", lambda: False)
    shards = Shards(folder, "train")
    common = {"batch_size": 128, "size": size, "stats": LEVELS, "affine": affine}
    with (
        make_loader(shards, "resident", device="cuda", half=half, **common) as on_gpu,
        make_loader(shards, **common) as on_cpu,
    ):
        for (images, labels), (cpu_images, cpu_labels) in zip(on_gpu, on_cpu, strict=True):
            assert torch.equal(labels.cpu(), cpu_labels)
            # float16 has 11 bits: a level below 256 is off by at most 1/16.
            assert (images.float().cpu() - cpu_images).abs().max() <= (0.07 if half else 0.01)


def test_auto_keeps_images_on_a_gpu_that_is_large_enough(folder):
    config = recipes.cpu("small").override({"device": "cuda"})
    assert with_backend(config, Shards(folder, "train")).data.backend == "resident"
