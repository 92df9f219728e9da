"""Many runs: comparisons of batch sizes, and what they bear out."""
