"""Run a recipe over a data set."""
