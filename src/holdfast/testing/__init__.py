"""Tools for testing engines, chains and stores: contract suites, models and deliberately broken parts.

Shipped with the package so that an engine written elsewhere can be held to the same promises.
"""
