"""A question asked of a whole data set."""
