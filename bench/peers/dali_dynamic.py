"""DALI's dynamic mode: its operators called one after another in Python, on a tar like that of `dali_webdataset`."""

from collections.abc import Iterator

from .dali_webdataset import write  # noqa: F401  (the worker calls it)
from .work import Batch, Missing, Stream, Work


def stream(work: Work) -> Stream:
    try:
        import nvidia.dali.experimental.dynamic as ndd
        from nvidia.dali import types
    except ImportError as error:
        raise Missing(f"DALI could not be imported ({error}); pip install nvidia-dali-cuda120 (Linux).") from error

    ndd.set_num_threads(work.threads)
    reader = ndd.readers.Webdataset(
        paths=[str(work.own)], ext=["png", "cls"], dtypes=[types.UINT8, types.INT64], random_shuffle=True
    )
    size = (work.size, work.size)
    device = "gpu" if work.on_gpu else "cpu"

    def batches() -> Iterator[Batch]:
        while True:
            for files, indices in reader.next_epoch(batch_size=work.batch_size):
                if files.batch_size < work.batch_size:
                    break
                indices = indices.torch().flatten()
                images = ndd.equalize(ndd.decoders.image(files, device=device, output_type=types.GRAY))
                if work.affine:
                    matrices = ndd.as_batch(work.matrices[indices])
                    images = ndd.warp_affine(images, matrices, size=size, fill_value=0, dtype=types.FLOAT)
                else:
                    images = ndd.resize(
                        images, size=size, interp_type=types.INTERP_LINEAR, antialias=False, dtype=types.FLOAT
                    )
                images = ndd.crop_mirror_normalize(
                    images,
                    mean=[255 * work.mean],
                    std=[255 * work.std],
                    output_layout="CHW",
                    dtype=types.FLOAT16 if work.half else types.FLOAT,
                )
                yield Batch(images.torch(), indices.to(work.device))

    return Stream(batches())
