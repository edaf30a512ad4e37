"""The compiled kernel, or None: numba is an extra, and refuses to load without a cache."""

__all__ = ["kernel"]

try:
    from countvae import kernel
except (ImportError, RuntimeError):
    kernel = None
