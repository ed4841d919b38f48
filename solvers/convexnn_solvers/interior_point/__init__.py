"""A primal-dual interior-point method on a gated program, for regularisations next to nothing.

From the bottom up:
``second_order`` ``system`` ``conditions`` ``iteration`` ``method``
"""
