"""Small KAN layers written from the formulas, one module a family.

Class names, tensor names and tensor layouts are those of the library that a module names, so that
an adapter sees the same layer and state dicts can be exchanged; ``tests/test_reference.py`` proves
that they compute the same. They stand in for libraries that the package index does not have.
"""
