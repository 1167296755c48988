"""Analyses of arrays: pure functions, not compiled, safe under jit, vmap and grad."""
