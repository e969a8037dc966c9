"""Scripts that reproduce tables of the paper; run from the repository root with ``python -m``.

Not part of the wheel. Needs the extra ``[recipes]``.
"""
