"""The student as a module with named tensors in and out: whole utterances, a sliding window, or a step."""
