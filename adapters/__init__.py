"""Built-in adapters, one file a library; imported as ``kanmeta.adapters``.

A module here offers ``ADAPTERS``, a tuple of :class:`kanmeta.Adapter`. Adding a file is enough:
:mod:`kanmeta.registry` loads every module of this package, in alphabetical order.
"""

if __name__ != "kanmeta.adapters":
    raise ImportError(
        f"this folder was imported as {__name__!r}; its only import name is 'kanmeta.adapters'. "
        "Install the project (pip install -e .) and import kanmeta."
    )
