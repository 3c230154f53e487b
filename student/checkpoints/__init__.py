"""Students in files: our folders, public checkpoints of several families, and reading pickles without running them."""
