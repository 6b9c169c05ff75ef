"""One file that holds several levels over one set of weights, and is told which of them to run."""
