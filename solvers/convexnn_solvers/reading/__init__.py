"""From CVXPY's expressions to the composite form, without canonicalising them.

From the bottom up:
``stuffing_limit`` ``atoms`` ``operators`` ``pooled`` ``loading`` ``affine_rules`` ``affine_products``
``tape`` ``affine`` ``multiples`` ``quadratic_root`` ``output_selection`` ``maxima`` ``terms``
``convex_constraints`` ``constraints`` ``variables`` ``penalty_layout`` ``compiler`` ``operator_memory``
"""
