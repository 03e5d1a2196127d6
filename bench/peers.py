"""The pipelines that bench/throughput.py compares ours with, on the same images, size, batch and machine.

Every peer makes an endless stream of shuffled batches, preprocessed like this project's and without augmentation. Its
labels are the indices of its images in `Work.images`, so that `check` can compare both.
"""

import json
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from time import perf_counter
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import v2

from emnist_dali.core.machine import available_cpus
from emnist_dali.pipelines.fused import STREAMED, bilinear_axis

try:
    import cv2
except ImportError:
    cv2 = None

_BENCH = Path(__file__).resolve().parent
# Only the first images go into the tar: 16,384 take 2 s to write and 34 MB, and more would not change the rate.
_TAR_IMAGES = 1 << 14
_CHECKED_IMAGES = 256

Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Work:
    """images (n, H, W) uint8; `mean` and `std` of the equalized and resized images, on the scale 0 … 1.

    `half` asks for float16, on a GPU; `folder` is a scratch folder, whose files the peers share. Raises ValueError if
    there are fewer images than a batch.
    """

    images: np.ndarray
    size: int
    mean: float
    std: float
    batch_size: int
    device: torch.device
    half: bool
    threads: int
    folder: Path

    def __post_init__(self) -> None:
        if self.batch_size > len(self.images):
            raise ValueError(f"a batch of {self.batch_size} needs more than {len(self.images)} images")

    @property
    def dtype(self) -> torch.dtype:
        return torch.float16 if self.half else torch.float32


class Missing(Exception):  # noqa: N818
    """Why a peer cannot run here, and what to do about it."""


class Peer(Protocol):
    def batch(self) -> Batch:
        """Normalized images (B, 1, S, S) float32 or float16, and their indices (B,) int64, on the device."""

    def rate(self, seconds: float) -> float:
        """Images/s over at least `seconds`; batches made before the call do not count."""

    def close(self) -> None: ...


class _Stream:
    """A peer in this process: an endless iterator that prefetches up to `ahead` batches."""

    def __init__(self, work: Work, batches: Iterator[Batch], ahead: int = 0) -> None:
        self._work, self._batches, self._ahead = work, batches, ahead

    def batch(self) -> Batch:
        return next(self._batches)

    def rate(self, seconds: float) -> float:
        for _ in range(self._ahead):
            next(self._batches)
        self._synchronize()
        images, start = 0, perf_counter()
        while perf_counter() - start < seconds:
            next(self._batches)
            images += self._work.batch_size
        self._synchronize()
        return images / (perf_counter() - start)

    def _synchronize(self) -> None:
        if self._work.device.type == "cuda":
            torch.cuda.synchronize(self._work.device)

    def close(self) -> None:
        del self._batches


def check(batch: Batch, work: Work) -> float:
    """The largest difference from the reference, in grey levels, over the first 256 images of a batch.

    It is at most 1 for PIL, which rounds to uint8 twice; float16 adds less than half a level.
    """
    from emnist_dali.pipelines.reference import preprocess

    images, indices = (tensor[:_CHECKED_IMAGES].cpu().numpy() for tensor in batch)
    expected = [preprocess(work.images[i], work.size, work.mean, work.std) for i in indices]
    difference = np.abs(images[:, 0].astype(np.float32) - np.stack(expected)) * work.std * 255
    # Rounded, because float32 adds 0.00002 to PIL's exact 1.
    return round(float(np.nan_to_num(difference, nan=np.inf).max()), 3)


class _Shuffled:
    """Endless indices of whole batches, a new permutation every epoch.

    As a DataLoader's `batch_sampler` it has no end of an epoch at which workers would wait.
    """

    def __init__(self, work: Work, device: torch.device | str = "cpu") -> None:
        self._n, self._batch_size, self._device = len(work.images), work.batch_size, device

    def __iter__(self) -> Iterator[torch.Tensor]:
        while True:
            order = torch.randperm(self._n, device=self._device)
            yield from order[: self._n // self._batch_size * self._batch_size].view(-1, self._batch_size)


class _ShuffledLists(_Shuffled):
    def __iter__(self) -> Iterator[list[int]]:
        return (indices.tolist() for indices in super().__iter__())


class _ImageDataset(Dataset):
    def __init__(self, work: Work) -> None:
        self._images = work.images
        self._transform = transforms.Compose(
            [
                transforms.Resize((work.size, work.size)),
                transforms.ToTensor(),
                transforms.Normalize(work.mean, work.std, inplace=True),
            ]
        )

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self._transform(Image.fromarray(cv2.equalizeHist(self._images[index]))), index


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)


def _dataloader(work: Work, workers: int) -> Peer:
    """PIL, OpenCV's equalizeHist and torchvision's transforms on single images, as in most projects."""
    if cv2 is None:
        raise Missing("OpenCV is not installed; pip install -e '.[peers]'.")
    loader = DataLoader(
        _ImageDataset(work),
        batch_sampler=_ShuffledLists(work),
        num_workers=workers,
        worker_init_fn=_start_worker,
        pin_memory=work.device.type == "cuda",
    )

    def batches() -> Iterator[Batch]:
        for images, labels in loader:
            images = images.to(work.device, non_blocking=True)
            yield images.to(work.dtype), labels.to(work.device, non_blocking=True)

    # DataLoader's prefetch_factor defaults to 2 batches per worker; 4 was no faster.
    return _Stream(work, batches(), ahead=2 * workers)


def _tables(pixels: torch.Tensor) -> torch.Tensor:
    """(n, pixels) int64 → (n, 256) float32: what OpenCV's equalizeHist makes of each grey level of an image.

    The package's `deploy.exportable.equalize` is limited to operations that export, and takes twice as long.
    """
    # bincount would wait for a CUDA device; float32 was slower than int32 on the CPU.
    ones = torch.ones((), dtype=torch.int32, device=pixels.device).expand_as(pixels)
    histogram = torch.zeros(len(pixels), 256, dtype=torch.int32, device=pixels.device).scatter_add_(1, pixels, ones)
    total = pixels.shape[1]
    counts = histogram.cumsum(1, dtype=torch.float32)
    first = counts.masked_fill(counts == 0, total).amin(1, keepdim=True)  # pixels of the lowest level
    # torch computes 255 / … as 255 · (1 / …), which may round to another grey level.
    factor = torch.full_like(first, 255) / (total - first)
    tables = ((counts - first).clamp_(min=0) * factor).round_()
    # OpenCV leaves images of a single grey level unchanged.
    return torch.where(first == total, torch.arange(256.0, device=pixels.device), tables)


def _equalize(images: torch.Tensor) -> torch.Tensor:
    """(n, 1, H, W) uint8 → the same, equalized."""
    pixels = images.flatten(1).long()
    return _tables(pixels).byte().gather(1, pixels).view_as(images)


def _torchvision(work: Work) -> Peer:
    """torchvision's v2 transforms on whole batches, on the device."""
    images = torch.from_numpy(work.images)[:, None]
    transform = v2.Compose(
        [
            # torchvision's own equalize follows PIL, whose result differs from OpenCV's.
            v2.Lambda(_equalize),
            # Resizing last, as floats, gives the same result and was faster on 2 threads than resizing uint8.
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([work.mean], [work.std], inplace=True),
            v2.ToDtype(work.dtype),
            v2.Resize((work.size, work.size), antialias=False),
        ]
    )

    def batches() -> Iterator[Batch]:
        for indices in _Shuffled(work):
            if work.device.type == "cpu":
                yield transform(images.index_select(0, indices)), indices
            else:
                batch = images.index_select(0, indices).pin_memory().to(work.device, non_blocking=True)
                yield transform(batch), indices.pin_memory().to(work.device, non_blocking=True)

    return _Stream(work, batches())


def _write_tar(path: Path, images: np.ndarray) -> None:
    with tarfile.open(path, "w") as tar:
        for i, image in enumerate(images):
            png = BytesIO()
            Image.fromarray(image).save(png, "PNG")
            for extension, data in (("png", png.getvalue()), ("cls", np.int64(i).tobytes())):
                member = tarfile.TarInfo(f"{i:06d}.{extension}")
                member.size = len(data)
                tar.addfile(member, BytesIO(data))


def _dali(work: Work) -> Peer:
    """DALI as in its documentation: PNGs in a tar, one image per sample."""
    try:
        from nvidia.dali import fn, pipeline_def, types
    except ImportError as error:
        raise Missing(f"DALI could not be imported ({error}); pip install nvidia-dali-cuda120 (Linux).") from error
    on_gpu = work.device.type == "cuda"
    path = work.folder / "images.tar"
    if not path.exists():
        _write_tar(path, work.images[:_TAR_IMAGES])

    @pipeline_def(exec_dynamic=True)
    def graph():
        images, labels = fn.readers.webdataset(
            paths=[str(path)], ext=["png", "cls"], dtypes=[types.UINT8, types.INT64], random_shuffle=True
        )
        images = fn.decoders.image(images, device="mixed" if on_gpu else "cpu", output_type=types.GRAY)
        images = fn.equalize(images)
        images = fn.resize(
            images, size=(work.size, work.size), interp_type=types.INTERP_LINEAR, antialias=False, dtype=types.FLOAT
        )
        images = fn.crop_mirror_normalize(
            images,
            mean=[255 * work.mean],
            std=[255 * work.std],
            output_layout="CHW",
            dtype=types.FLOAT16 if work.half else types.FLOAT,
        )
        return images, labels.gpu() if on_gpu else labels

    depth = 2
    pipeline = graph(
        batch_size=work.batch_size,
        num_threads=work.threads,
        device_id=(work.device.index or 0) if on_gpu else None,
        prefetch_queue_depth=depth,
    )
    pipeline.build()

    def batches() -> Iterator[Batch]:
        while True:
            outputs = pipeline.run(cuda_stream=torch.cuda.current_stream(work.device)) if on_gpu else pipeline.run()
            images, labels = (torch.from_dlpack(output.as_tensor()) for output in outputs)
            yield images, labels.flatten()

    return _Stream(work, batches(), ahead=depth)


class _Ffcv:
    """bench/ffcv_worker.py, controlled over stdin and stdout; in its own environment, because FFCV needs numpy < 2.3.

    If `streamed`, it writes past the caches like this project's CPU engine; FFCV itself does not have that.
    """

    def __init__(self, work: Work, streamed: bool) -> None:
        if streamed and (work.size % 16 or 4 * work.size**2 < STREAMED):
            raise Missing("Only images of at least 64×64 and a multiple of 16 are streamed; see «FFCV, fused».")
        python = _BENCH.parent / ".venv-ffcv" / "bin" / "python"
        if not python.exists():
            raise Missing("FFCV is not installed; run «bash bench/ffcv.sh».")
        self._device, self._folder = work.device, work.folder
        if not (work.folder / "images.npy").exists():
            np.save(work.folder / "images.npy", work.images)
        names = ("size", "mean", "std", "batch_size", "half", "threads")
        settings = {name: getattr(work, name) for name in names} | {"device": str(work.device), "streamed": streamed}
        self._log = work.folder / f"ffcv-{streamed}.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [python, _BENCH / "ffcv_worker.py", json.dumps(settings)],
                cwd=work.folder,
                # The upper limit of what FFCV may request of numba.
                env={**os.environ, "NUMBA_NUM_THREADS": str(work.threads)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._receive()

    def _request(self, *request: str | float) -> float | str:
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._receive()

    def _receive(self) -> float | str:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"The FFCV worker exited:\n{self._log.read_text()}")
        return json.loads(line)

    def batch(self) -> Batch:
        with np.load(self._folder / self._request("batch")) as arrays:
            return tuple(torch.from_numpy(arrays[name]).to(self._device) for name in ("images", "labels"))

    def rate(self, seconds: float) -> float:
        return self._request("rate", seconds)

    def close(self) -> None:
        self._process.kill()  # FFCV's threads would keep it alive
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


def _resident(work: Work, equalize_once: bool) -> Peer:
    """All images as one tensor on the device, in batched torch: the upper bound for data that fit there.

    `equalize_once` equalizes during set-up.
    """
    images = torch.from_numpy(work.images).to(work.device)
    if equalize_once:
        images = torch.cat([_equalize(part) for part in images.split(4096)])
    scale, shift = 1 / (255 * work.std), -work.mean / work.std
    rows, columns = (_weights(side, work) for side in work.images.shape[1:])
    columns = columns.T.contiguous()

    def batches() -> Iterator[Batch]:
        for indices in _Shuffled(work, work.device):
            batch = images.index_select(0, indices)
            # Normalized before the resize, on fewer pixels; this is equivalent, because the weights sum to 1.
            if equalize_once:
                levels = batch.to(work.dtype).mul_(scale).add_(shift)
            else:
                pixels = batch.flatten(1).long()
                tables = _tables(pixels).mul_(scale).add_(shift).to(work.dtype)
                levels = tables.gather(1, pixels).view_as(batch)
            yield (rows @ (levels @ columns))[:, None], indices

    return _Stream(work, batches())


def _weights(side: int, work: Work) -> torch.Tensor:
    """Bilinear resize of one axis as a matrix (size, side)."""
    lower, upper, weight = bilinear_axis(side, work.size)
    matrix = np.zeros((work.size, side), np.float32)
    matrix[np.arange(work.size), lower] = 1 - weight
    matrix[np.arange(work.size), upper] += weight
    return torch.from_numpy(matrix).to(work.device, work.dtype)


PEERS: dict[str, Callable[[Work], Peer]] = {
    **{
        f"DataLoader, {workers} workers": lambda work, workers=workers: _dataloader(work, workers)
        for workers in sorted({0, 2, available_cpus()})
    },
    "torchvision v2, batched": _torchvision,
    "DALI webdataset, PNG": _dali,
    "FFCV, fused": lambda work: _Ffcv(work, streamed=False),
    "FFCV, fused and streamed": lambda work: _Ffcv(work, streamed=True),
    "device-resident": lambda work: _resident(work, equalize_once=False),
    "device-resident, equalized once": lambda work: _resident(work, equalize_once=True),
}
