"""A run directory becomes something a person reads."""
