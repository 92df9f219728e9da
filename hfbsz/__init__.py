"""hfbsz: the batch size of a language-model run, computed, explained, carried out and checked."""

__version__ = "0.1.0"
