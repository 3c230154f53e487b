"""ExecuTorch programs. Its Python runtime takes torch tensors: ``bridge`` alone imports torch, when one is opened."""
