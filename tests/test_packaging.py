"""What the wheel holds, and what imports do: adapters/ is importable as kanmeta.adapters only."""

import ast
import email
import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from email.message import Message
from pathlib import Path

import pytest

import kanmeta

ROOT = Path(__file__).resolve().parents[1]

# The libraries that adapters describe, what only recipes and tests need, and scikit-learn, which
# takes as long to import as torch and is needed by k-means alone.
NOT_OURS_TO_IMPORT = (
    "click",
    "efficient_kan",
    "fastkan",
    "kan",
    "matplotlib",
    "rich",
    "sklearn",
    "timm",
    "torchvision",
    "tqdm",
)


def _run(*command: str | Path, cwd: Path, pythonpath: Path | None = None) -> str:
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    if pythonpath is not None:
        env["PYTHONPATH"] = str(pythonpath)
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """Paths below ROOT that git tracks and that exist."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip(f"needs git and a clone: what to ship is what git tracks, and {ROOT} is none")
    names = _run("git", "ls-files", "-z", cwd=ROOT).split("\0")
    present = [name for name in names if name and (ROOT / name).is_file()]
    assert present, f"git tracks no file of {ROOT}; run git add first"
    return present


@pytest.fixture(scope="module")
def wheel(tracked: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheel built from a copy of the tracked files."""
    source = tmp_path_factory.mktemp("source")
    for name in tracked:
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
    _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", cwd=source)
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def test_wheel_holds_exactly_the_tracked_modules(wheel: Path, tracked: list[str]) -> None:
    modules = [name for name in tracked if name.endswith(".py")]
    ours = {name for name in modules if name.startswith("kanmeta/")}
    adapters = {f"kanmeta/{name}" for name in modules if name.startswith("adapters/")}
    assert "kanmeta/api.py" in ours
    assert "kanmeta/adapters/pykan.py" in adapters
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert shipped == ours | adapters | {"kanmeta/py.typed"}


def test_metadata(metadata: Message) -> None:
    core = [r for r in metadata.get_all("Requires-Dist", []) if "extra ==" not in r]
    names = {r.partition(">=")[0] for r in core}
    assert names == {"torch", "safetensors", "scikit-learn", "einops"}
    assert metadata["License-Expression"] == "MIT"
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Version"] == kanmeta.__version__


USE_OF_THE_WHEEL = """
import sys
import torch
from torch import nn
import kanmeta

class KANLinear(nn.Module):  # a private copy: same names and layouts, a basis of its own
    def __init__(self, n_in, n_out, grid_size=5, spline_order=3):
        super().__init__()
        self.spline_order = spline_order
        self.base_weight = nn.Parameter(torch.randn(n_out, n_in))
        self.spline_weight = nn.Parameter(torch.randn(n_out, n_in, grid_size + spline_order))
        self.register_buffer("grid", torch.zeros(n_in, grid_size + 2 * spline_order + 1))

    def forward(self, x):
        basis = torch.stack([torch.cos(k * x) for k in range(self.spline_weight.shape[-1])], -1)
        return x @ self.base_weight.T + torch.einsum("nik,oik->no", basis, self.spline_weight)

model = nn.Sequential(KANLinear(4, 8), KANLinear(8, 3))
plain = sum(p.numel() for p in model.parameters())
kanmeta.convert(model, dim_z=1)
assert sum(p.numel() for p in kanmeta.prompts(model).values()) == 4 * 8 + 8 * 3
x = torch.randn(5, 4)
y = model(x)
y.square().sum().backward()
assert all(p.grad is not None for p in kanmeta.prompts(model).values())
kanmeta.materialize(model)
assert sum(p.numel() for p in model.parameters()) == plain
torch.testing.assert_close(model(x), y)
print(*{m.__file__ for n, m in sys.modules.items() if n.partition(".")[0] == "kanmeta"}, sep="\\n")
"""


def test_installed_wheel_converts(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    install = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index")
    _run(sys.executable, *install, "--target", site, wheel, cwd=tmp_path)
    used = _run(sys.executable, "-c", USE_OF_THE_WHEEL, cwd=tmp_path, pythonpath=site).split("\n")
    files = {Path(line) for line in used if line}
    assert site / "kanmeta" / "adapters" / "efficient_kan.py" in files
    assert not [f for f in files if not f.is_relative_to(site)], "an editable install was used"


def test_importing_adapters_under_another_name_says_which_is_right(tmp_path: Path) -> None:
    code = "try:\n import adapters\nexcept ImportError as error:\n print(error)"
    message = _run(sys.executable, "-c", code, cwd=tmp_path, pythonpath=ROOT)
    assert "imported as 'adapters'" in message
    assert "'kanmeta.adapters'" in message
    assert "Install the project (pip install -e .) and import kanmeta" in message
    _run(sys.executable, "-c", "import kanmeta", cwd=tmp_path)  # where that was done


def test_tests_run_the_adapters_of_this_checkout() -> None:
    # pytest takes kanmeta/ from here, but adapters/ from where the editable install points
    used = Path(importlib.import_module("kanmeta.adapters").__path__[0])
    assert used == ROOT / "adapters", "tests need this checkout installed: pip install -e ."


def test_importing_kanmeta_and_its_adapters_is_light(tmp_path: Path) -> None:
    for name in NOT_OURS_TO_IMPORT:  # importable stand-ins: an import in try/except shows as well
        (tmp_path / f"{name}.py").touch()
    code = (
        "import sys, torch\n"
        f"names = {NOT_OURS_TO_IMPORT}\n"
        # torch itself imports tqdm where it finds it
        "for name in list(sys.modules):\n"
        "    if name.partition('.')[0] in names: del sys.modules[name]\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "import kanmeta.registry\n"
        "print(len(kanmeta.registry.all_adapters()), *(n for n in names if n in sys.modules))\n"
    )
    count, *imported = _run(sys.executable, "-c", code, cwd=tmp_path.parent).split()
    assert int(count) > 0
    assert imported == []


def _imports(source: str, package: str) -> set[str]:
    """Full names of all that ``source``, a module of ``package``, imports."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(relative, package)
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def _imports_an_adapter(source: str, package: str) -> bool:
    roots = ("adapters", "kanmeta.adapters")
    return any(f"{name}.".startswith(f"{r}.") for r in roots for name in _imports(source, package))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import kanmeta.adapters", True),
        ("import kanmeta.adapters.pykan as p", True),
        ("from kanmeta import adapters", True),
        ("from kanmeta.adapters import pykan", True),
        ("from . import adapters", True),
        ("from .adapters.pykan import ADAPTERS", True),
        ("def f():\n    import adapters", True),
        ("import kanmeta.adapter", False),
        ("from kanmeta.adapter import Adapter", False),
        ("from . import adapter", False),
        ("import importlib\nimportlib.import_module('kanmeta.adapters')", False),
    ],
)
def test_static_imports_of_adapters_are_found(source: str, expected: bool) -> None:
    assert _imports_an_adapter(source, "kanmeta") is expected


def test_only_adapters_import_adapters() -> None:
    # the registry loads them by name; a static import would need the name mypy does not know
    files = [f for d in ("kanmeta", "recipes", "tests") for f in (ROOT / d).rglob("*.py")]
    assert ROOT / "kanmeta" / "registry.py" in files
    package = {f: ".".join(f.relative_to(ROOT).parent.parts) for f in files}
    assert [f for f in files if _imports_an_adapter(f.read_text("utf-8"), package[f])] == []


def test_importing_kanmeta_costs_a_fraction_of_importing_torch(tmp_path: Path) -> None:
    code = (
        "import time; start = time.process_time(); import torch; middle = time.process_time()\n"
        "import kanmeta; print((time.process_time() - middle) / (middle - start))"
    )
    shares = [float(_run(sys.executable, "-c", code, cwd=tmp_path)) for _ in range(3)]
    assert min(shares) < 0.25


A_WHOLE_LIFE = """
import sys
events = []
sys.addaudithook(lambda event, args: events.append(event))
import torch, kanmeta
from pathlib import Path
from recipes.reference.efficient_kan import KAN
model = kanmeta.convert(KAN([20, 30, 10]), clusters=2, distill=True)
model(torch.rand(4, 20)).sum().backward()
path = Path(sys.argv[1]) / "kan.safetensors"
kanmeta.save(model, path, prompt_bits=4)
kanmeta.materialize(kanmeta.load(KAN([20, 30, 10]), path))
assert "import" in events and "open" in events
print(*{e for e in events if e.startswith(("socket.connect", "socket.getaddr", "urllib", "http"))})
"""


def test_nothing_goes_to_the_network(tmp_path: Path) -> None:
    command = (sys.executable, "-W", "ignore", "-c", A_WHOLE_LIFE, tmp_path)
    assert _run(*command, cwd=tmp_path, pythonpath=ROOT).split() == []
