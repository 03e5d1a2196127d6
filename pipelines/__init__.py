"""The input pipeline: one mathematics in two engines (`dali`, `fused`) and a plain `reference`."""

from . import kernel_cache  # noqa: F401  (before numba compiles anything)
