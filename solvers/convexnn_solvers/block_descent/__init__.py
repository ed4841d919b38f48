"""Exact block coordinate descent on working sets of gates, for large regularisation.

From the bottom up:
``kernel`` ``sweeps`` ``method``
"""
