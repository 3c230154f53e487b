"""From a teacher to a student: teachers, masks, losses, data, the training loop and evaluation."""
