"""Arrays to arrays: pure, unjitted functions, safe under vmap."""
