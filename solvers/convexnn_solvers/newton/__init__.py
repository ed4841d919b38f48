"""Semismooth Newton on the dual of a gated program; ADMM goes ahead where its steps are short.

From the bottom up:
``outliers`` ``copies`` ``blocks`` ``jacobian`` ``operator`` ``factors`` ``system`` ``duals`` ``start``
``pairs`` ``cone_splitting`` ``position`` ``pair_steps`` ``dual_newton`` ``splitting_newton`` ``working_set``
``method``
"""
