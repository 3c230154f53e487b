"""Is the student any good? Linear probes over frozen features, beside log-mel, an untrained student and the teacher."""
