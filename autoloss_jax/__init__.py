"""autoloss_jax: searches for the loss a learning-to-rank model should be trained with."""

from importlib import metadata

try:
    __version__ = metadata.version("autoloss_jax")
except metadata.PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0.0.0+source"
