"""Gated programs: recognised in the composite form, as plain arrays, and as a method of the loop.

From the bottom up:
``gate_cones`` ``fits`` ``features`` ``nonsmooth_fits`` ``program`` ``maps`` ``probe`` ``loss_fits``
``gated_reading`` ``structure`` ``method``
"""
