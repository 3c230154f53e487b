"""One file per target, each with the same three steps: convert, quantise, verify."""
