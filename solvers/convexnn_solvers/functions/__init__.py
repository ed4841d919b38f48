"""Losses, penalties and cones of single terms: value, gradient, proximal map, conjugate side by side.

From the bottom up:
``norm_balls`` ``penalties`` ``group_shrinkage`` ``losses`` ``nonsmooth_losses`` ``constraint_cones``
``tilted``
"""
