"""The loaders that bench/throughput.py compares with this project's: one file each, with the reasons for its
settings.

A module has `stream(work, …)`, and `write(work, …)` if it reads files of its own: `work.py` says what they are for.
Each runs in a process of its own (`worker.py`), in the environment that it needs (`peers.sh`).
"""

from dataclasses import dataclass, field
from typing import Any

from emnist_dali.core.machine import available_cpus

WORKERS = max(2, available_cpus())


@dataclass(frozen=True)
class Peer:
    """A module of this folder with the options of its `stream`, and the environment, `.venv-<name>`, that it runs in.

    `shuffle` is "full" or what is shuffled instead.
    """

    module: str
    options: dict[str, Any] = field(default_factory=dict)
    environment: str | None = None
    shuffle: str = "full"


PEERS = {
    "emnist-dali": Peer("emnist_dali_loader", {"codec": "lz4"}),
    "emnist-dali, raw": Peer("emnist_dali_loader", {"codec": "raw"}),
    "DataLoader, 0 workers": Peer("dataloader", {"workers": 0}),
    f"DataLoader, {WORKERS} workers": Peer("dataloader", {"workers": WORKERS}),
    "DataLoader, batched, 0 workers": Peer("dataloader_batched", {"workers": 0}),
    f"DataLoader, batched, {WORKERS} workers": Peer("dataloader_batched", {"workers": WORKERS}),
    "torchvision v2, batched": Peer("torchvision_v2"),
    "device-resident": Peer("resident", {"equalize_once": False}),
    "device-resident, equalized once": Peer("resident", {"equalize_once": True}),
    "DALI webdataset, PNG": Peer("dali_webdataset", shuffle="buffer of 1,024"),
    "DALI dynamic mode, PNG": Peer("dali_dynamic", shuffle="buffer of 1,024"),
    "FFCV": Peer("ffcv_loader", {"kernel": "torch"}, "ffcv"),
    "FFCV, fused": Peer("ffcv_loader", {"kernel": "fused"}, "ffcv"),
    "FFCV, fused and streamed": Peer("ffcv_loader", {"kernel": "streamed"}, "ffcv"),
    "SPDL": Peer("spdl_pipeline", environment="loaders"),
    "Grain": Peer("grain_dataset", {"workers": WORKERS}, "loaders"),
    "LitData": Peer("litdata_streaming", {"workers": WORKERS}, "loaders", "within chunks"),
    "MosaicML Streaming": Peer("mosaicml_streaming", {"workers": WORKERS}, "loaders", "within blocks"),
    "Hugging Face datasets": Peer("hf_datasets", {"workers": WORKERS}, "loaders"),
    "torchdata nodes": Peer("torchdata_nodes", {"workers": WORKERS}, "loaders"),
    "WebDataset": Peer("webdataset_tar", {"workers": WORKERS}, "loaders", "buffer of 8,192"),
    "tf.data": Peer("tf_data", environment="tensorflow"),
}
