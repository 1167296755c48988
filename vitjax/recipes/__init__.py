"""What is computed for every image of a data set."""
