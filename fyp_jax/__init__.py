"""Follow Your Pose in JAX: character videos from a text prompt and a pose sequence."""

__version__ = "0.1.0"
