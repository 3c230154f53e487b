"""Samples: from files, memory and the microphone, at any rate, to mono float32 at 16 kHz."""
