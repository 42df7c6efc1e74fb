"""The performance model: how long one iteration of an engine takes on a device, and what it draws.

It owns the shapes of models, the fitted coefficients and the iteration clock. All of it is pure: it reads package data
and computes; it starts nothing and asks nobody.
"""
