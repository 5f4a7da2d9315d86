"""The names of solvers and of timestep spacings, for configs; nothing here needs JAX."""

TIMESTEP_SPACINGS = {
    "ddim": ("leading", "trailing"),
    "dpm++2m": ("linspace", "leading", "trailing"),
    "unipc": ("linspace", "leading", "trailing"),
}
"""Solvers, each with the timestep spacings that it takes. The first one is its default, which is
diffusers'."""

SOLVERS = tuple(TIMESTEP_SPACINGS)
