"""The kernel of the resident engine where there is no GPU: interpreted, and compiled for one.

What the engine computes in torch operations is tested with the other engines in test_pipelines.py.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from emnist_dali.pipelines import affine, reference, resident
from emnist_dali.pipelines.pixels import PixelSpec

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is missing: torch brings it on Linux")
ROOT = Path(__file__).resolve().parents[2]
AUGMENT = {"rotation": (0.3, 0.1), "scale": 0.2, "shear": 0.2, "translation": 0.15, "flip": 0.5}
# With this mean and std a grey level is 1 in the batch.
LEVELS = {"mean": 0.0, "std": 1 / 255}


def work(shape: tuple[int, int], size: int, warped: bool, dtype: str) -> tuple:
    """The arguments of `resident.preprocess` for 6 of 5 random images."""
    rng = np.random.default_rng(size)
    images = torch.from_numpy(rng.integers(0, 256, (5, *shape), dtype=np.uint8))
    matrices = torch.from_numpy(affine.matrices(rng, 6, shape, size, **AUGMENT)) if warped else None
    rows = torch.tensor([4, 0, 0, 3, 1, 2])
    return images, rows, matrices, PixelSpec(shape=shape, size=size, dtype=dtype, **LEVELS)


def by_reference(images, rows, matrices, pixels) -> np.ndarray:
    warps = [None] * len(rows) if matrices is None else matrices.numpy()
    made = [
        reference.preprocess(image, pixels.size, **LEVELS, matrix=matrix, equalize=False)
        for image, matrix in zip(images[rows].numpy(), warps, strict=True)
    ]
    return np.stack(made)


CASES = list(product([(28, 28), (20, 36)], [8, 28, 32, 40], [False, True], ["float32", "float16"]))


def interpreted() -> list[float]:
    """By case, the most grey levels between the interpreted kernel and the reference; needs TRITON_INTERPRET=1."""
    from emnist_dali.pipelines import resident_kernel

    found = []
    for case in CASES:
        arguments = work(*case)
        batch = resident_kernel.preprocess(*arguments)
        assert batch.shape == (6, 1, case[1], case[1])
        assert str(batch.dtype) == f"torch.{case[3]}"
        found.append(float(np.abs(batch[:, 0].float().numpy() - by_reference(*arguments)).max()))
    return found


@needs_triton
def test_the_interpreted_kernel_agrees_with_the_reference():
    # In a process of its own: triton reads the variable when a kernel is defined.
    job = "import json; from tests.pipelines.test_resident import interpreted; print(json.dumps(interpreted()))"
    done = subprocess.run(
        [sys.executable, "-c", job],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for (*_, dtype), apart in zip(CASES, json.loads(done.stdout), strict=True):
        # float16 has 11 bits: a level below 256 is off by at most 1/16.
        assert apart <= (0.01 if dtype == "float32" else 0.07)


@needs_triton
@pytest.mark.parametrize("warped", [False, True])
@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_the_kernel_compiles_for_an_h100(warped, dtype, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from emnist_dali.pipelines.resident_kernel import BLOCK, make_batch

    constants = {"height": 28, "width": 28, "size": 112, "warped": warped, "block": BLOCK}
    signature = {"images": "*u8", "rows": "*i64", "matrices": "*fp32", "out": f"*{dtype}", "scale": "fp32"}
    signature |= {"shift": "fp32", **dict.fromkeys(constants, "constexpr")}
    compiled = triton.compile(ASTSource(make_batch, signature, constants), target=GPUTarget("cuda", 90, 32))
    assert ".target sm_90" in compiled.asm["ptx"]
    assert compiled.asm["cubin"]
    assert ".local" not in compiled.asm["ptx"]  # no array or spilled register lies in memory


@pytest.mark.parametrize(("shape", "size", "warped", "dtype"), CASES)
def test_torch_operations_agree_with_the_reference(shape, size, warped, dtype):
    arguments = work(shape, size, warped, dtype)
    batch = resident.preprocess(*arguments)
    assert batch.shape == (6, 1, size, size)
    assert batch.dtype == getattr(torch, dtype)
    apart = np.abs(batch[:, 0].float().numpy() - by_reference(*arguments)).max()
    assert apart <= (0.01 if dtype == "float32" else 0.07)


def test_a_batch_does_not_change_the_images():
    images, *rest = work((28, 28), 28, False, "float32")
    before = images.clone()
    resident.preprocess(images, *rest).zero_()
    assert torch.equal(images, before)


def test_a_cpu_needs_no_triton():
    job = (
        "import sys; sys.modules['triton'] = None; from tests.pipelines.test_resident import resident, work; "
        "resident.preprocess(*work((28, 28), 32, True, 'float32'))"
    )
    subprocess.run([sys.executable, "-c", job], cwd=ROOT, timeout=300, check=True)
