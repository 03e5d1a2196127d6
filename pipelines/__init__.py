"""The input pipeline: one mathematics in two engines (`dali`, `fused`) and a plain `reference`."""
