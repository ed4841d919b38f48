"""The loop that every method runs in: limits, best certified point, checkpoints, table, callback.

From the bottom up:
``result`` ``checkpoint`` ``progress_table`` ``watch`` ``iterate`` ``relay`` ``budget_search``
"""
