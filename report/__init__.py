"""Pages, plots and tables that export, devices, distill and the demo share: HTML and SVG, without a plotting library.

Imports runtime and NumPy only.
"""
