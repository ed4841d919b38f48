"""Side-by-side timings to certified gaps: ``python -m benchmarks.run``, ``python -m benchmarks.report``."""
