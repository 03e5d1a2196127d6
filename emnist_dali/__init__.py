"""A high-throughput EMNIST trainer around an NVIDIA DALI pipeline."""

__version__ = "0.1.0"
