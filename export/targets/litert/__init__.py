"""LiteRT: a ``.tflite`` for Android and whatever else LiteRT runs on, from the torch program."""
