"""What records say about the GPU, with a script in nvidia-smi's place."""

import time
from pathlib import Path

import pytest
import torch

from emnist_dali.core import machine
from emnist_dali.core.files import write_json
from emnist_dali.runs import schema

STATE = {
    "gpu_driver": "570.86.15",
    "gpu_power_limit_watts": 700.0,
    "gpu_sm_mhz": 345.0,
    "gpu_sm_max_mhz": 1980.0,
    "gpu_memory_mhz": None,
    "gpu_memory_max_mhz": 2619.0,
}


def nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    script = folder / "nvidia-smi"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_clocks_driver_and_power_limit_are_those_of_the_gpu_in_use(tmp_path, monkeypatch):
    answer = 'test "$1" = --id=GPU-7 && echo "570.86.15, 700.00, 345, 1980, [N/A], 2619"'
    nvidia_smi(tmp_path, monkeypatch, answer)
    assert machine.gpu_state("GPU-7") == STATE
    assert set(machine.gpu_state("GPU-8").values()) == {None}  # fails: not the one asked for


@pytest.mark.parametrize("body", ["exit 9", "echo No devices were found", "printf '\\377'", ""])
def test_what_nvidia_smi_does_not_tell_is_none(tmp_path, monkeypatch, body):
    nvidia_smi(tmp_path, monkeypatch, body)
    assert machine.gpu_state("GPU-7") == dict.fromkeys(STATE)


def test_without_nvidia_smi_all_are_none(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.gpu_state("GPU-7") == dict.fromkeys(STATE)


def test_the_environment_of_a_run_has_them_and_older_ones_are_still_read(tmp_path):
    now = machine.environment()
    assert now.keys() > STATE.keys()
    if not torch.cuda.is_available():
        assert {now[name] for name in STATE} == {None}
    older = {name: value for name, value in now.items() if name not in STATE}
    for env in ({**now, **STATE}, now, older):
        write_json(tmp_path / "env.json", env)
        assert schema.read_env(tmp_path / "env.json") == env


def test_busy_seconds_count_the_work_of_all_processes_on_these_cpus():
    before = machine.busy_seconds()
    if before is None:
        pytest.skip("only Linux tells")
    own, spent = time.process_time(), 0.0
    while spent < 0.2:
        spent = time.process_time() - own
    # The kernel counts in ticks of 10 ms.
    assert machine.busy_seconds() - before > spent - 0.05


def test_where_linux_does_not_tell_nothing_is_known(monkeypatch):
    monkeypatch.delattr(machine.os, "sched_getaffinity", raising=False)
    assert machine.busy_seconds() is None
