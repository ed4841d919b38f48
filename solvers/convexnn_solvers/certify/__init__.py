"""Bounds and certificates: what is printed as proved, in float64, by code that no solver shares.

From the bottom up:
``known_images`` ``reach`` ``dual_blocks`` ``free_variables`` ``cone_columns`` ``free_columns``
``reached_entries`` ``dual_norms`` ``row_sizes`` ``concave_search`` ``budgets`` ``recession``
``dual_values`` ``thin_domains`` ``dual_directions`` ``dual_bounds`` ``budget_bounds`` ``violations``
``certifier`` ``kink_duals`` ``relaxation`` ``certificate``
"""
