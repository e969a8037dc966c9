"""All supported combinations of Python and torch: ``nox`` runs those whose interpreters are here.

One of them: ``nox -s "tests-3.11(torch='2.14.1')"``; a few tests:
``nox -s tests-3.11 -- -k golden``. A session runs all of tests/; those of packages that ``make``
installs apart and of checkouts (``KANMETA_UPSTREAM``) are skipped.
"""

import nox

nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False

PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
TORCH = ["2.6.0", "2.14.1"]
"""The oldest and the newest that is supported; see pyproject.toml and constraints.txt."""


@nox.session(python=PYTHONS)
@nox.parametrize("torch", TORCH)
def tests(session: nox.Session, torch: str) -> None:
    """Run the tests with one Python and one torch."""
    session.install(f"torch=={torch}", "-e", ".[recipes,test]")
    session.run("python", "-m", "pytest", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session(python=PYTHONS[0])
def lint(session: nox.Session) -> None:
    """Check style and types with the oldest Python."""
    session.install("-e", ".[lint]")
    session.run("python", "-m", "ruff", "check", ".")
    session.run("python", "-m", "ruff", "format", "--check", ".")
    session.run("python", "-m", "mypy")
