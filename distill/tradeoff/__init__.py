"""What compression costs and gains: a grid of compressed students, measured side by side on one machine.

Every point is compressed, counted, exported with its proof, probed through its artifact on real speech, and timed in
turns with all others. A search by the same measures looks for the fastest point within a limit of quality loss.
"""
