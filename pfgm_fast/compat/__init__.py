"""Other people's checkpoints and function names, over this package's kernels."""
