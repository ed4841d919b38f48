"""Several solvers on one problem, each in its own process, judged by our certificate.

From the bottom up:
``peak_memory`` ``swallowed_errors`` ``isolated_solve`` ``isolation`` ``compare``
"""
