import gc
import gzip
import json
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import ops
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from torchmetrics import MetricCollection

from emnist_dali import recipes
from emnist_dali.config import Mixing
from emnist_dali.core.errors import UserError
from emnist_dali.data.shards import Shards
from emnist_dali.data.stats import Stats, statistics
from emnist_dali.evaluation import evaluate as evaluate_module
from emnist_dali.evaluation.evaluate import evaluate
from emnist_dali.evaluation.inference import evaluation_loader, predict
from emnist_dali.evaluation.metrics import score
from emnist_dali.loading.backends import Batch
from emnist_dali.loading.batch_plan import BatchPlan
from emnist_dali.runs.checkpoint import load_state, load_weights
from emnist_dali.runs.schema import check_state
from emnist_dali.runtime import autocast, has_gpu, resolve, use_device
from emnist_dali.training import session, slices, trainer
from emnist_dali.training.build import Training
from emnist_dali.training.loss import kl_divergence, log_frequencies
from emnist_dali.training.session import train
from emnist_dali.training.trainer import Trainer

from ..loaders import whole_training
from ..training_runs import lines, small

aten = ops.aten


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory):
    return train(small(data_dir, tmp_path_factory.mktemp("runs") / "run", epochs=6))


def test_a_run_learns_and_its_folder_tells(run):
    records = lines(run)
    epochs = [record for record in records if record["kind"] == "epoch"]
    assert [record["epochs_done"] for record in epochs] == list(range(1, 7))
    assert epochs[-1]["step"] == 6 * (576 // 64)
    assert epochs[-1]["loss"] < 0.8 * epochs[0]["loss"]
    assert [record["kind"] for record in records[6:]] == ["test", "unseen"]
    # 12 classes: chance is 8 %.
    assert records[6]["accuracy"] > 0.3
    assert records[6]["images"] == 108
    for record in epochs:
        assert 0 <= record["data_wait"] <= 1
        assert record["images_per_second"] > 0
    assert run.config().training.epochs == 6
    assert json.loads((run.path / "env.json").read_text())["packages"]["torch"] == torch.__version__.split("+")[0]


def test_evaluation_gives_the_number_that_training_printed(run):
    results = evaluate([run.path])
    for record in lines(run)[6:]:
        assert results[record.pop("kind")] == record


def test_the_best_weights_are_those_of_the_best_validation(run):
    epochs = [record for record in lines(run) if record["kind"] == "epoch"]
    best = max(epochs, key=lambda record: record["val_accuracy"])
    _, about = load_weights(run.best)
    assert about["epochs_done"] == best["epochs_done"]
    assert about["val_accuracy"] == best["val_accuracy"]


def test_a_run_keeps_its_predictions_of_every_part(run, folder):
    for record in lines(run)[6:]:
        kept = load_file(run.predictions_path(record["kind"]))
        labels = Shards(folder, record["kind"]).labels()
        assert kept["labels"].tolist() == labels.tolist()
        assert kept["predicted"].eq(kept["labels"]).double().mean().item() == pytest.approx(record["accuracy"])
        assert (kept["probabilities"].dtype, kept["probabilities"].shape) == (torch.float16, (len(labels), 12))
        torch.testing.assert_close(kept["probabilities"].float().sum(1), torch.ones(len(labels)), rtol=0, atol=5e-3)


def test_a_run_without_equalization_is_evaluated_without_it(data_dir, folder, tmp_path, monkeypatch):
    run = train(small(data_dir, tmp_path / "run", epochs=1, equalize=False))
    plain = statistics(folder, 32, equalize=False)
    assert load_weights(run.best)[1]["stats"] == [plain.mean, plain.std, False]
    used = []
    real = evaluate_module.evaluation_loader
    monkeypatch.setattr(evaluate_module, "evaluation_loader", lambda *a: used.append(a[2]) or real(*a))
    results = evaluate([run.path])
    assert used == [plain, plain]
    assert results["test"].items() <= lines(run)[-2].items()
    # Old weights tell two numbers: theirs are of equalized images.
    assert Stats(*load_weights(run.best)[1]["stats"][:2]).equalize


@pytest.mark.parametrize(("until", "last"), [(1.0, 17), (0.5, 8), (0.3, 5), (0.0, -1)])
def test_mixing_ends_where_it_is_told_to(until, last, data_dir):
    published = Mixing(mixup_alpha=5.0, cutmix_alpha=5.0, probability=1.0, switch=0.5, until=until)
    training = make_training(data_dir, mixing=published)
    loop = training.trainer
    assert loop.config.training.epochs * loop.steps_per_epoch == 18
    batch = Batch(torch.rand(64, 1, 32, 32), torch.arange(64) % 12)
    mixed = []
    for loop.step in range(18):
        loop.epoch, loop.micro = divmod(loop.step, loop.steps_per_epoch)
        images, targets = loop._mix(batch)
        changed = not torch.equal(images, batch.images)
        assert changed == (targets.topk(2).values[:, 1].max().item() > 0.01)
        mixed += [loop.step] * changed
    assert mixed == list(range(last + 1))


class HostReads(TorchDispatchMode):
    """Counts the operators by which the host reads a tensor: on a GPU each waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator.overloadpacket in (aten._local_scalar_dense, aten.nonzero, aten.equal, aten.is_nonzero):
            self.steps.append(self.trainer.step)
        return operator(*args, **(kwargs or {}))


def make_training(data_dir, **options) -> Training:
    return whole_training(small(data_dir, "unused", **options), Shards(data_dir / "demo" / "small", "train"))


@pytest.mark.parametrize("optimizer", ["lion", "adamw", "adam", "sgd", "muon"])
@pytest.mark.parametrize("recipe", ["cpu", "published"])
def test_the_host_waits_for_the_device_on_logging_steps_only(recipe, optimizer, data_dir, monkeypatch):
    monkeypatch.setattr(trainer, "LOG_EVERY", 4)
    monkeypatch.setattr(recipes, "cpu", getattr(recipes, recipe))  # `published` mixes, and has no averaged weights
    options = {"model": "test_efficientnet", "pretrained": False, "image_size": 32}
    training = make_training(data_dir, optimizer=optimizer, **options)
    loop = training.trainer
    with training, HostReads() as reads:
        reads.trainer = loop
        loop.train_epoch(training.loader)
    steps = loop.steps_per_epoch
    assert reads.steps == [*range(4, steps + 1, 4), steps]


def test_evaluation_reads_its_results_once(run, data_dir, monkeypatch):
    training = make_training(data_dir)
    loop = training.trainer
    shards = Shards(data_dir / "demo" / "small", "test")
    updates = []
    real = MetricCollection.forward
    monkeypatch.setattr(MetricCollection, "forward", lambda self, *a: updates.append(1) or real(self, *a))
    with evaluation_loader(
        loop.config, shards, statistics(data_dir / "demo" / "small", 32), np.arange(len(shards))
    ) as loader:
        loop.step = "evaluation"
        with HostReads() as reads:
            reads.trainer = loop
            score(predict(loop.trained, loader, autocast(loop.config), "test"), shards.manifest.classes)
    assert len(loader) == 2
    assert len(updates) == 1


def test_no_garbage_is_collected_in_an_epoch_and_none_is_made(data_dir):
    training = make_training(data_dir)
    loop = training.trainer
    collections = []
    gc.callbacks.append(lambda phase, info: collections.append((phase, loop.step)))
    try:
        with training:
            loop.train_epoch(training.loader)
            made = gc.collect()
            loop.begin(1)
            loop.train_epoch(training.loader)
            more = gc.collect()
    finally:
        gc.callbacks.pop()
    assert gc.isenabled()
    assert {step for _, step in collections} <= {0, loop.steps_per_epoch, 2 * loop.steps_per_epoch}
    # What an epoch leaves behind does not depend on its steps.
    assert more <= made + 50


def test_compiled_training_is_the_same_training(data_dir, monkeypatch):
    """torch's own backends take a minute; `aot_eager` traces the same graphs and runs them as they are."""
    monkeypatch.setattr("torch.compile", partial(torch.compile, backend="aot_eager", fullgraph=True))
    losses = []
    for compile in ("off", "on"):
        training = make_training(data_dir, compile=compile)
        loop = training.trainer
        before = {name: tensor.clone() for name, tensor in loop.model.state_dict().items()}
        if compile == "on":
            assert loop.warm_up() > 0
        for name, tensor in loop.model.state_dict().items():
            assert torch.equal(tensor, before[name]), name
        with training:
            losses.append(loop.train_epoch(training.loader)["loss"])
    assert np.isclose(*losses, rtol=1e-4)


def test_nothing_is_compiled_after_the_warm_up(data_dir, tmp_path, monkeypatch):
    """Not in two epochs, their validation and the test."""
    monkeypatch.setattr("torch.compile", partial(torch.compile, backend="aot_eager", fullgraph=True))
    compiled, real = [], Trainer.warm_up

    def warm_up(self):
        real(self)
        compiled.append(counters["stats"]["unique_graphs"])
        return 0.0

    monkeypatch.setattr(Trainer, "warm_up", warm_up)
    train(small(data_dir, tmp_path / "run", model="test_efficientnet", compile="on"))
    assert compiled[0] > 0
    assert compiled == [counters["stats"]["unique_graphs"]]


@pytest.mark.parametrize("optimizer", ["lion", "adamw", "adam", "sgd", "muon"])
def test_a_rate_that_is_a_tensor_is_saved_as_a_number_and_stays_one_tensor(optimizer, data_dir):
    """As on a GPU."""
    training = make_training(data_dir, optimizer=optimizer, model="test_efficientnet")
    loop, rate = training.trainer, torch.tensor(0.5)
    for group in loop.optimizer.param_groups:
        group["lr"] = rate
    with training:
        loop.train_epoch(training.loader)
    state = loop.state()
    saved = {group["lr"] for group in state["optimizer"]["param_groups"]}
    assert saved == {rate.item()}
    check_state(state)
    rate.fill_(7)
    loop.load(state)
    assert {id(group["lr"]) for group in loop.optimizer.param_groups} == {id(rate)}
    assert rate.item() in saved


class EagerGraph:
    """Stands in for `StepGraph` where there is no GPU: the same steps, one by one."""

    def __init__(self, step, images, targets):
        self.step = step
        for _ in range(3):
            step(images, targets)

    def __call__(self, images, targets):
        self.step(images, targets)


@pytest.mark.parametrize("optimizer", ["lion", "adamw", "adam", "sgd", "muon"])
def test_a_captured_step_is_the_ordinary_step(optimizer, data_dir, monkeypatch):
    """And neither the capture nor its warm-up leaves a trace."""
    monkeypatch.setattr(trainer, "StepGraph", EagerGraph)
    states = []
    for compile in ("off", "graph"):
        training = make_training(data_dir, optimizer=optimizer, model="test_efficientnet")
        loop = training.trainer
        loop.config = replace(loop.config, run=replace(loop.config.run, compile=compile))
        loop.warm_up()
        with training:
            for epoch in range(2):
                loop.begin(epoch)
                entry = loop.train_epoch(training.loader)
        state = loop.state()
        states.append({"loss": torch.tensor(entry["loss"]), **state["model"], **_named(state["ema"], "ema")})
        states[-1] |= {str(key): value for key, value in tensors(state["optimizer"]["state"])}
    eager, captured = states
    assert eager.keys() == captured.keys()
    for name, tensor in eager.items():
        assert torch.equal(tensor, captured[name]), name


def _named(state, prefix):
    return {f"{prefix}.{name}": tensor for name, tensor in state.items()}


def tensors(state):
    """(parameter, name) and tensor of an optimizer's state."""
    for parameter, values in state.items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                yield (parameter, name), value


@pytest.mark.parametrize(
    ("changes", "compile"),
    [({"device": "cpu"}, "off"), ({"amp": "fp16"}, "off"), ({"accumulation": 2}, "off"), ({}, "graph")],
)
def test_what_no_graph_can_hold_is_not_captured(changes, compile, gpus):
    config = resolve(recipes.cpu("balanced").override({"device": "cuda", "compile": "graph", **changes}))
    assert config.run.compile == compile


def test_a_training_that_is_not_captured_says_so(data_dir, tmp_path, capsys):
    train(small(data_dir, tmp_path / "run", epochs=1, compile="graph"))
    assert "A step is not captured as a CUDA graph: that takes one GPU" in capsys.readouterr().out


@pytest.fixture
def gpus(monkeypatch):
    """Two GPUs, as far as torch tells; the index of the current one."""
    current = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr("torch.cuda.device", lambda device: nullcontext())
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "A GPU")
    monkeypatch.setattr("torch.cuda.get_arch_list", lambda: ["sm_75", "sm_90", "compute_100"])
    monkeypatch.setattr("torch.cuda.set_device", current.append)
    monkeypatch.setattr("torch.set_float32_matmul_precision", lambda precision: None)
    return current


@pytest.mark.parametrize(("device", "index"), [("auto", 0), ("cuda", 0), ("cuda:1", 1)])
def test_the_gpu_that_is_named_becomes_the_current_one(device, index, gpus):
    config = resolve(recipes.cpu("balanced").override({"device": device}))
    assert config.run.device == ("cuda" if device == "auto" else device)
    assert not gpus
    use_device(config)
    assert gpus == [index]


def test_each_gpu_is_asked_for_its_own_precision(gpus, monkeypatch):
    asked = []
    monkeypatch.setattr("torch.cuda.device", lambda device: nullcontext(asked.append(device.index)))
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: asked[-1] == 1)
    amps = [resolve(recipes.improved("balanced").override({"device": f"cuda:{i}"})).run.amp for i in (0, 1)]
    assert amps == ["fp16", "bf16"]


@pytest.mark.parametrize(
    ("capability", "has"),
    [((7, 0), False), ((7, 5), True), ((8, 9), False), ((9, 0), True), ((10, 0), True), ((12, 1), True)],
)
def test_a_gpu_without_kernels_in_this_torch_is_not_used(capability, has, gpus, monkeypatch, capsys):
    """A kernel of 7.5 runs on no 8.9, intermediate code of 10.0 on all later ones."""
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    config = recipes.cpu("balanced")
    assert has_gpu() == has
    assert resolve(config.override({"device": "auto"})).run.device == ("cuda" if has else "cpu")
    assert ("no kernels for A GPU" in capsys.readouterr().out) != has
    if not has:
        with pytest.raises(UserError, match="no kernels for A GPU, of compute capability"):
            resolve(config.override({"device": "cuda:1"}))


@pytest.mark.parametrize(("share", "told"), [(0.5, 1), (0.1, 0)])
def test_a_training_beside_other_work_says_so_once(share, told, data_dir, tmp_path, capsys, monkeypatch):
    cpus = session.available_cpus()
    monkeypatch.setattr(session, "_TELLING", 0.0)
    monkeypatch.setattr(session, "busy_seconds", lambda: session.process_time() + share * cpus * session.monotonic())
    train(small(data_dir, tmp_path / "run", epochs=2), test=False)
    assert capsys.readouterr().out.count("Other work took") == told


@pytest.mark.parametrize("slice_", [64, 32])
def test_a_profile_is_written_and_its_costliest_operators_printed(slice_, data_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(slices, "SLICE", slice_)
    run = train(small(data_dir, tmp_path / "run", epochs=2, profile=True))
    with gzip.open(run.path / "trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    assert sum(event.get("name", "").startswith("ProfilerStep#") for event in events) == 10
    table = capsys.readouterr().out.split("operator", 1)[1].split("Trace:")[0].splitlines()[1:]
    assert len(table) == 10
    assert any("convolution_backward" in line for line in table)
    assert not any("ProfilerStep" in line for line in table)


def test_the_checkpoint_holds_what_the_loop_owns(run):
    state = load_state(run.last)
    assert state.keys() >= {"model", "ema", "optimizer", "scaler", "epoch", "step", "best", "facts", "config"}
    assert state["step"] == lines(run)[5]["step"]
    assert state["config"] == run.config().to_dict()


def test_validation_and_test_data_stay_apart_from_training(data_dir, tmp_path, monkeypatch):
    seen = []

    class Spy(BatchPlan):
        def __init__(self, shards, spec, size, indices):
            seen.append((shards.part, spec.train, set(indices.tolist())))
            super().__init__(shards, spec, size, indices)

    monkeypatch.setattr("emnist_dali.loading.loader.BatchPlan", Spy)
    train(small(data_dir, tmp_path / "run", epochs=1, val_fraction=0.1))
    (train_part, shuffled, training), (val_part, val_shuffled, validation), *tests = seen
    assert (train_part, shuffled, val_part, val_shuffled) == ("train", True, "train", False)
    assert len(validation) == 60
    assert not training & validation
    assert len(training | validation) == 600
    assert [part for part, *_ in tests] == ["test", "unseen"]


def test_val_fraction_0_trains_on_everything_and_takes_the_last_weights(data_dir, tmp_path):
    run = train(small(data_dir, tmp_path / "run", val_fraction=0.0))
    epochs = [record for record in lines(run) if record["kind"] == "epoch"]
    assert "val_accuracy" not in epochs[0]
    assert epochs[-1]["step"] == 2 * (600 // 64)
    assert load_weights(run.best)[1]["epochs_done"] == 2


def test_the_same_run_twice_gives_the_same_weights(data_dir, tmp_path):
    weights = []
    for name in "ab":
        run = train(small(data_dir, tmp_path / name, epochs=1))
        weights.append(load_weights(run.best)[0])
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


def test_steps_end_a_run_and_cut_its_evaluation(data_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("emnist_dali.evaluation.inference.TRIAL_IMAGES", 40)
    run = train(small(data_dir, tmp_path / "run", steps=3, model="test_vit"))
    records = lines(run)
    assert records[0]["step"] == 3
    assert records[1]["images"] == 40
    assert "at most 40 images" in capsys.readouterr().out


def test_accumulated_micro_batches_are_the_whole_batch(data_dir):
    """Without BatchNorm, warps and mixing, the gradient of a step does not depend on its micro-batches."""
    config = resolve(small(data_dir, None, model="test_vit", image_size=32, optimizer="sgd"))
    shards = Shards(data_dir / "demo" / "small", "train")
    weights = []
    for batch_size, accumulation in ((64, 1), (16, 4)):
        changed = config.override({"batch_size": batch_size, "steps": 2, "accumulation": accumulation})
        changed = replace(changed, data=replace(changed.data, affine=None))
        with whole_training(changed, shards) as training:
            loop = training.trainer
            loop.train_epoch(training.loader)
            weights.append(torch.cat([p.detach().flatten() for p in loop.model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sliced", [False, True])
def test_only_the_loss_sees_logits_that_are_adjusted(sliced, data_dir):
    config = resolve(small(data_dir, None, logit_adjustment=2.0))
    counts = [10, 20, 70]
    loop = Trainer(config, "abc", counts, steps_per_epoch=1)
    images = torch.randn(8, 1, config.data.image_size, config.data.image_size)
    targets = torch.eye(3)[[0, 1, 2, 0] * 2]
    logits = loop.model.train()(images)
    expected = kl_divergence(logits + 2 * log_frequencies(counts, "abc"), targets)
    loss = loop._slice_loss(loop.model, images, targets) if sliced else loop._loss(images, targets)
    torch.testing.assert_close(loss, expected)
    assert (loss - kl_divergence(logits, targets)).abs() > 0.1


def test_a_loss_that_is_not_finite_stops_the_run(data_dir, tmp_path):
    with pytest.raises(UserError, match=r"The loss is nan at step \d+"):
        train(small(data_dir, tmp_path / "run", lr=1e30, optimizer="sgd"))


def test_a_folder_with_a_run_is_not_overwritten(run, data_dir):
    before = (run.path / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="already contains a run"):
        train(small(data_dir, run.path))
    assert (run.path / "metrics.jsonl").read_bytes() == before


def test_on_a_cpu_large_batches_are_cut_into_micro_batches(data_dir):
    seed = resolve(recipes.published("balanced").override({"device": "cpu"}))
    assert (seed.data.batch_size, seed.training.accumulation) == (64, 16)
    cpu = resolve(recipes.cpu("balanced").override({"device": "cpu"}))
    assert (cpu.data.batch_size, cpu.training.accumulation) == (512, 1)
    assert cpu.data.backend == "cpu"
    with pytest.raises(UserError, match=r"run\.device is 'tpu'"):
        resolve(recipes.cpu("balanced").override({"device": "tpu"}))


def test_a_long_cpu_run_says_how_long(capsys):
    loop = object.__new__(trainer.Trainer)
    loop.config, loop.device, loop.steps_per_epoch = recipes.published("balanced"), torch.device("cpu"), 100
    loop._estimate(36.0)
    assert "20 hours" in capsys.readouterr().out
    loop._estimate(0.1)
    assert not capsys.readouterr().out


def test_wandb_offline_needs_no_network(data_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = train(small(data_dir, tmp_path / "run", epochs=1, wandb="offline"))
    assert list(run.path.glob("wandb/offline-run-*/*.wandb"))
    assert load_state(run.last)["trackers"]["wandb"]


def test_wandb_gets_settings_curves_confusions_predictions_and_the_model(data_dir, tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_SILENT", "true")
    logged, kept, asked, init = [], [], {}, wandb.init

    def spied(real, into):
        return lambda what, **options: into.append(what) or real(what, **options)

    def start(**options):
        asked.update(options)
        run = init(**options)
        for name, into in (("log", logged), ("log_artifact", kept)):
            monkeypatch.setattr(run, name, spied(getattr(run, name), into))
        return run

    monkeypatch.setattr(wandb, "init", start)
    run = train(small(data_dir, tmp_path / "run", wandb="offline", wandb_group="together"))
    assert (asked["group"], asked["config"]["training"]["epochs"]) == ("together", 2)
    *epochs, test = logged
    assert [values["epochs_done"] for values in epochs] == [1, 2]
    assert all("val_accuracy" in values for values in epochs)
    assert test.keys() == {"test/confusion", "test/predictions"}
    rows = test["test/predictions"].data
    predictions = load_file(run.predictions_path("test"))
    wrong = int((predictions["predicted"] != predictions["labels"]).sum())
    assert len(rows) == min(wrong, 50) + 50
    assert all(row[1] != row[2] for row in rows[: min(wrong, 50)])
    sureness = [row[3] for row in rows[: min(wrong, 50)]]
    assert sureness == sorted(sureness, reverse=True)
    (model,) = (artifact for artifact in kept if artifact.type == "model")
    assert set(model.manifest.entries) == {"best.safetensors", "config.json"}


def test_wandb_that_cannot_start_is_one_sentence(data_dir, tmp_path, monkeypatch):
    import wandb

    def no_account(**_):
        raise wandb.errors.UsageError("no API key")

    monkeypatch.setattr(wandb, "init", no_account)
    with pytest.raises(UserError, match=r"no API key.*wandb login"):
        train(small(data_dir, tmp_path / "run", wandb="online"))


def test_dali_trains_like_the_cpu_engine(data_dir, tmp_path):
    losses = []
    for backend in ("cpu", "dali"):
        run = train(small(data_dir, tmp_path / backend, epochs=1, backend=backend))
        losses.append(lines(run)[0]["loss"])
    assert np.isclose(*losses, rtol=0.02)
