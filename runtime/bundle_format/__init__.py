"""The bundle on disk: its manifest, what a manifest may say, the contract of its input and the sizes of its steps."""
