"""Douglas-Rachford splitting with an exact step on all affine outputs, and Newton steps on proximal points.

From the bottom up:
``dense_rows`` ``row_terms`` ``smooth_prox`` ``row_jacobians`` ``weight_jacobians`` ``splitting``
``proximal_newton`` ``method``
"""
