"""ADMM with an exact step on the weights: one factor for all outputs, on any backend, in float32 too.

From the bottom up:
``gram_factor`` ``memory_plan`` ``problem`` ``prediction_prox`` ``iteration`` ``working_set`` ``method``
"""
