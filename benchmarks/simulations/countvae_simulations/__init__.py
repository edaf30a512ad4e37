"""Simulations: what a pseudocount costs, what depth buys back, and how the peers do.

A scenario asks one question: a grid of cells, each a table, a method and a seed. A cell is one job,
keyed by its content, so a run that was broken off goes on where it stopped.
"""
