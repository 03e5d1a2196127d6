"""The input pipeline: one mathematics in three engines (`dali`, `fused`, `resident`) and a plain `reference`.

Imports nothing of the rest of the project.
"""

from . import kernel_cache  # noqa: F401  (before numba compiles anything)

# Raised when an engine gives other pixels for the same input: a run goes on with the pixels that it began with.
VERSION = 1
