"""How far an artifact is from torch: the reference, the recordings that check, and where it is likely to break."""
