"""Projections on the pattern cones ``{u : (2 D - I) X u >= 0}``, many at a time, again and again.

From the bottom up:
``factors`` ``active_set_kernel`` ``kernel`` ``active_sets`` ``projections`` ``memory``
"""
