"""Plots as SVG, made here: axes and marks, lines and bars, scatter plots, heat maps."""
