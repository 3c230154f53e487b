"""Export of a student: captured, converted, quantised, proven, compared."""
