"""R-FISTA and the augmented Lagrangian, on all variables or on a working set of gates.

From the bottom up:
``proximal`` ``curvature`` ``envelope`` ``accelerated`` ``rfista`` ``split_terms`` ``gate_metric``
``gate_columns`` ``gate_schedule`` ``gate_descent`` ``augmented_lagrangian`` ``cone_descent``
"""
