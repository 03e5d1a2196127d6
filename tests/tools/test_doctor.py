import json
import shutil
import sys

import pytest
import torch
from click.testing import CliRunner

from emnist_dali import pipelines
from emnist_dali.cli import main
from emnist_dali.core import extras
from emnist_dali.tools import doctor


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(doctor, "reachable", lambda url: False)


def checks(data_dir) -> dict[str, dict]:
    return {check["name"]: check for check in doctor.examine(data_dir)["checks"]}


def test_what_works_needs_no_advice(data_dir, folder):
    found = checks(data_dir)
    assert found["the CPU kernel"] == {"name": "the CPU kernel", "found": "works", "advice": None}
    assert found["DALI on the CPU"]["found"].startswith("works, ")
    assert found["DALI on the CPU"]["advice"] is None
    data = found[f"data in {folder}"]
    assert "600 train, 108 test, 108 unseen images, all hashes match" in data["found"]
    assert data["advice"] is None


@pytest.mark.parametrize(
    ("folder", "said"), [("/tmp/kernels", "kept in /tmp/kernels"), ("", "compiled anew by each process")]
)
def test_kernels_that_numba_found_no_place_for_are_told(folder, said, tmp_path, monkeypatch):
    monkeypatch.setattr(pipelines.kernel_cache, "FALLBACK", folder)
    found = checks(tmp_path)["the CPU kernel"]["found"]
    assert found == f"works; its kernels are {said}, since no other place for them can be written"


def test_servers_that_do_not_answer_are_told_with_the_ways_out(tmp_path):
    found = checks(tmp_path)
    assert found["NIST"]["found"] == "biometrics.nist.gov does not answer"
    assert "--source PATH" in found["NIST"]["advice"]
    assert "--weights FILE" in found["hub of pretrained weights"]["advice"]


def test_damaged_data_are_named(data_dir, tmp_path):
    shutil.copytree(data_dir, tmp_path / "data")
    shard = tmp_path / "data/demo/small/test-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    found = checks(tmp_path / "data")[f"data in {shard.parent}"]
    assert found["found"] == f"{shard} is not the shard that was packed."
    command = f"emnist-dali prepare --split small --source glyphs --data-dir {tmp_path / 'data'} --force"
    assert found["advice"] == f"run `{command}`."
    (shard.parent / "manifest.json").write_text("{}")
    found = checks(tmp_path / "data")[f"data in {shard.parent}"]
    assert "is not a valid manifest" in found["found"]
    assert found["advice"] == "delete that folder and prepare --split small from its --source again."


def test_without_data_it_says_how_to_have_them(tmp_path):
    assert "emnist-dali prepare" in checks(tmp_path / "nowhere")["data"]["advice"]


def test_a_loop_of_links_has_no_data(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    assert checks(tmp_path / "loop")["data"]["found"] == f"nothing prepared in {tmp_path / 'loop'}"


def test_a_missing_extra_and_a_missing_dali_are_told(tmp_path, monkeypatch):
    real = extras.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "optuna" else real(name))
    monkeypatch.delattr(pipelines, "dali", raising=False)
    monkeypatch.setitem(sys.modules, "emnist_dali.pipelines.dali", None)
    found = checks(tmp_path)
    assert found["extra sweep"]["found"] == "optuna missing"
    assert "pip install 'emnist-dali[sweep]'" in found["extra sweep"]["advice"]
    assert "nvidia-dali-cuda120" in found["DALI on the CPU"]["found"]
    assert "--backend cpu" in found["DALI on the CPU"]["advice"]


def test_engines_that_do_not_agree_are_told(tmp_path, monkeypatch):
    real = doctor._batch
    shift = {"cpu": 0.0, "dali": 2 / 255 / doctor.STATS.std}  # two grey levels
    monkeypatch.setattr(doctor, "_batch", lambda shards, backend, device: real(shards, "cpu", "cpu") + shift[backend])
    assert "report this" in checks(tmp_path)["DALI on the CPU"]["advice"]


@pytest.mark.parametrize(
    ("cuda", "hip", "said"),
    [("13.0", None, "for CUDA 13.0"), (None, "6.4", "for ROCm 6.4"), (None, None, "for CPUs only")],
)
def test_the_build_of_torch_is_told(cuda, hip, said, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", hip)
    check = doctor._torch()
    assert check.found == f"{torch.__version__}, {said}"
    assert check.advice is None


def test_a_torchvision_of_another_torch_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    check = doctor._torch()
    assert "torchvision fails" in check.found
    assert "from one index" in check.advice


def test_a_driver_that_torch_cannot_use_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "_driver", lambda: "470.1")
    assert "update the driver" in doctor._gpu().advice
    monkeypatch.setattr(doctor, "_driver", lambda: None)
    assert doctor._gpu().advice is None


def test_recipes_that_do_not_fit_the_gpu_are_told(monkeypatch):
    monkeypatch.setattr(doctor, "gpu_memory", lambda: 8 * 2**30)
    advice = {check.name: check.advice for check in doctor._memory()}
    assert advice["memory for recipe published"] == "Train with --batch-size 256."
    assert advice["memory for recipe fast"] is None
    monkeypatch.setattr(doctor, "gpu_memory", lambda: None)
    assert list(doctor._memory()) == []


def test_the_command_prints_a_line_a_check_or_json(data_dir):
    lines = CliRunner().invoke(main, ["doctor", "--data-dir", str(data_dir)]).output.splitlines()
    document = json.loads(CliRunner().invoke(main, ["doctor", "--data-dir", str(data_dir), "--json"]).output)
    advised = [check for check in document["checks"] if check["advice"]]
    assert sum(line.startswith(("✓", "→")) for line in lines) == len(document["checks"])
    assert sum(line.startswith("→") for line in lines) == len(advised)
    assert {check["advice"] for check in advised} <= {line.strip() for line in lines}
    assert document["machine"]["cpus"] >= 1
