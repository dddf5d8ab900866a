"""Data sets, one module each. NumPy out; nothing is downloaded on import."""

from vhp_jax.data.base import DataError, Dataset, Motion, Split, Standardisation

__all__ = ["DataError", "Dataset", "Motion", "Split", "Standardisation"]
