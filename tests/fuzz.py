"""Mutated checkpoints of all formats: ``python -m tests.fuzz FILES SEED`` runs any number.

Each is loaded into a model; that works, or raises an error of ours and leaves the model as it was.
"""

import copy
import itertools
import json
import os
import random
import resource
import signal
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

import kanmeta
from kanmeta import archive, errors
from recipes.reference.efficient_kan import KAN
from recipes.reference.fast_kan import FastKAN

SECONDS = 10
"""Of the processor; a file that takes longer hangs, most take a few milliseconds."""
MEGABYTES = 100
"""By which the memory of the whole run may grow; files are of some kilobytes."""


class Net(nn.Module):
    """Two kinds of layers, tied tensors, a buffer, a group norm."""

    def __init__(self) -> None:
        super().__init__()
        self.kan, self.fast = KAN([4, 5, 3]), FastKAN([3, 4, 2])
        self.norm, self.a, self.b = nn.BatchNorm1d(2), nn.Linear(2, 2), nn.Linear(2, 2)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.a(self.norm(self.fast(self.kan(x)))))
        return y


def pykan() -> nn.Module:
    from kan import KAN

    model: nn.Module = KAN([2, 2, 1], grid=3, k=2, auto_save=False)
    return model


def seeds(folder: Path) -> list[tuple[Callable[[], nn.Module], bytes]]:
    """Files of all formats, each with what builds a model for it."""
    found: list[tuple[Callable[[], nn.Module], bytes]] = []
    path = folder / "seed"
    for build in (Net, pykan):
        model = kanmeta.convert(build(), dim_z=2, hidden=3)
        if build is Net:
            model.kan.layers[0].update_grid(torch.rand(50, 4))
        else:
            model.fix_symbolic(0, 0, 0, "sin", fit_params_bool=False, verbose=False)
        options: list[dict[str, Any]] = [{}, {"dtype": torch.float16}]
        options += [{"prompt_bits": bits} for bits in (16, 8, 4, 3, 2)]
        for option in options if build is Net else options[::3]:
            kanmeta.save(model, path, **option)
            found.append((build, path.read_bytes()))
    return found


# --- mutations ----------------------------------------------------------------------------------

NUMBERS = [0, 1, 2, 255, 256, 2**31 - 1, 2**32, 2**62, 2**63 - 1, 2**64, 10**30, -1, -(2**31)]
ODD: list[Any] = [*NUMBERS, 0.5, 1e308, float("nan"), float("inf"), None, True, False]
ODD += [
    "",
    "x",
    "é\u0000\ud800",
    "../../x",
    "__class__",
    "y" * 5000,
    [],
    {},
    [[]],
    {"": 0},
    [0] * 99,
]


def mutate(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """Change the file: anywhere, in its JSON, or in what is compressed."""
    kind = chance.random()
    try:
        if kind < 0.45:
            return _json(data, chance)
        if kind < 0.6:
            return _inside(data, chance)
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError):
        pass  # mutated before: there is nothing to find any more
    return _bytes(data, others, chance)


def _mutated(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    for _ in range(chance.choice([1, 1, 1, 2])):
        data = mutate(data or b"x", others, chance)
    return data


def _bytes(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    raw = bytearray(data)
    for _ in range(chance.choice([1, 1, 1, 2, 4, 16])):
        at, size = chance.randrange(len(raw) + 1), chance.choice([1, 1, 2, 4, 8, 64, 512])
        other = chance.choice(others)
        start = chance.randrange(len(other))
        part = other[start : start + size]
        what = chance.randrange(8)
        if what < 2 and at < len(raw):
            raw[at] ^= 1 << chance.randrange(8)
        elif what == 2:
            raw[at : at + size] = chance.randbytes(size)
        elif what == 3:
            del raw[at : at + size]
        elif what == 4:
            raw[at:at] = part
        elif what == 5:
            raw[at : at + size] = part
        elif what == 6:
            raw[:8] = chance.choice([*NUMBERS[:-2], at]).to_bytes(16, "little")[:8]
        else:
            del raw[at:]
    return bytes(raw)


def _json(data: bytes, chance: random.Random) -> bytes:
    """Change values of the header, or of our JSON in it, and keep the lengths right."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    meta = header.get("__metadata__", {})
    if "kanmeta" in meta and chance.random() < 0.6:
        ours = json.loads(meta["kanmeta"])
        _change(ours, chance)
        meta["kanmeta"] = _text(ours, chance)
    else:
        _change(header, chance)
    text = _text(header, chance).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def _text(value: Any, chance: random.Random) -> str:
    text = json.dumps(value, separators=(",", ":"))
    if chance.random() < 0.03:
        depth = chance.choice([100, 5000, 200_000])
        text = text.replace("[]", "[" * depth + "]" * depth, 1)
    if chance.random() < 0.02:
        text = text.replace("1", "1" * 10_000, 1)
    return text


def _change(root: Any, chance: random.Random) -> None:
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        places = list(_places(root))
        if not places:
            return
        parent, key = chance.choice(places)
        what = chance.randrange(6)
        value = parent[key]
        if what == 0:
            del parent[key]
        elif what == 1 and isinstance(value, int):
            parent[key] = value + chance.choice([-1, 1, 8, 1000])
        elif what == 2:
            elsewhere, name = chance.choice(places)
            parent[key] = copy.deepcopy(elsewhere[name])
        elif what == 3 and isinstance(parent, list):
            parent.insert(key, copy.deepcopy(value))
        elif what == 4 and isinstance(parent, dict):
            parent[chance.choice(["x", "", "weight", "layers", "__metadata__"])] = value
        else:
            parent[key] = chance.choice(ODD)


def _places(root: Any) -> Any:
    """Yield (container, key) of every value in a JSON document."""
    keys = root.keys() if isinstance(root, dict) else range(len(root))
    for key in list(keys):
        yield root, key
        if isinstance(root[key], dict | list):
            yield from _places(root[key])


def _inside(data: bytes, chance: random.Random) -> bytes:
    """Change what a compressed file holds and compress it again, with the right check sum."""
    length = 8 + int.from_bytes(data[:8], "little")
    outer = json.loads(data[8:length])
    if [*outer] != ["__metadata__", archive.NAME] and archive.NAME not in outer:
        raise ValueError("not compressed")
    pieces, parts = archive._Pieces(data[length:-4]), []
    while pieces.left:
        parts.append(pieces.take(1 << 20))
    inner = b"".join(parts)
    inner = _json(inner, chance) if chance.random() < 0.7 else _bytes(inner, [inner], chance)
    head = 8 + int.from_bytes(inner[:8], "little")
    cuts = sorted({0, min(head, len(inner)), chance.randrange(len(inner) + 1), len(inner)})
    packed = [archive._compress(inner[a:b]) for a, b in itertools.pairwise(cuts) if a < b]
    raw = b"".join([*packed, zlib.crc32(inner).to_bytes(4, "little")])
    tensor = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
    return save({archive.NAME: tensor}, outer["__metadata__"])


# --- strings that would do harm -----------------------------------------------------------------

HARM = [
    "__import__('os').system('touch harm')",
    "os",
    "kanmeta.adapters.pykan:CONTAINERS",
    "../../harm",
    "lambda: open('harm', 'w')",
    "layers.0.__class__.__init__.__globals__",
    "{0.__class__}%s",
]


def hostile(data: bytes) -> Iterator[bytes]:
    """Files in which each name in our JSON, in turn, is one that would do harm if it were used."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    text = header["__metadata__"]["kanmeta"]
    for number, (parent, key) in enumerate(_places(json.loads(text))):
        if not isinstance(parent[key], str | list | dict):
            continue
        for harm in HARM:
            ours = json.loads(text)
            place, name = list(_places(ours))[number]
            place[name] = harm if isinstance(place[name], str) else {harm: harm}
            header["__metadata__"]["kanmeta"] = json.dumps(ours)
            raw = json.dumps(header).encode()
            yield len(raw).to_bytes(8, "little") + raw + data[8 + length :]


FORBIDDEN = ("compile", "code.", "ctypes.dlopen", "exec", "import", "marshal.", "os.", "pickle.")
FORBIDDEN += ("shutil.", "socket.", "subprocess.", "tempfile.", "urllib.", "webbrowser.")
"""Beginnings of audit events that no data may cause; and opening a file, unless for reading."""


class Watch:
    """Audit hook: what is done while a file is loaded that reading it does not take."""

    def __init__(self) -> None:
        self.on, self.events = False, list[str]()
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.on and (
            event.startswith(FORBIDDEN) or (event == "open" and (arguments[2] or 0) & os.O_ACCMODE)
        ):
            self.events.append(f"{event} {arguments!r:.200}")


# --- the run ------------------------------------------------------------------------------------


def state(model: nn.Module) -> list[tuple[str, object, type]]:
    """All that a failed load must leave: tensors are compared by their numbers."""
    tensors = [
        (n, t.detach().clone(), type(t)) for n, t in model.state_dict(keep_vars=True).items()
    ]
    return tensors + [(name, None, type(module)) for name, module in model.named_modules()]


def same(a: list[tuple[str, object, type]], b: list[tuple[str, object, type]]) -> bool:
    return len(a) == len(b) and all(
        x[0] == y[0] and x[2] is y[2] and (x[1] is None or torch.equal(x[1], y[1]))  # type: ignore[arg-type]
        for x, y in zip(a, b, strict=True)
    )


def run(number: int, seed: int) -> Counter[str]:
    """Load ``number`` mutated files; return how often each outcome came.

    Raises:
        AssertionError: naming seed and number of a file with which something else happened.
    """
    chance, outcomes = random.Random(seed), Counter[str]()
    signal.signal(signal.SIGPROF, _too_long)
    with tempfile.TemporaryDirectory() as folder:
        corpus = seeds(Path(folder))
        others = [data for _, data in corpus]
        models = {build: build() for build, _ in corpus}
        before = {build: state(model) for build, model in models.items()}
        path = Path(folder) / "mutated"
        harmful = [
            (b, bad) for b, d in corpus if archive.NAME.encode() not in d for bad in hostile(d)
        ]
        most, watch = 0, Watch()
        for build, data in (corpus[0], corpus[-1]):  # what is imported once, is so now
            path.write_bytes(data)
            kanmeta.load(build(), path)
        for i in range(number):
            build, data = chance.choice(corpus)
            if i % 4 == 0 and harmful:
                build, data = harmful.pop(chance.randrange(len(harmful)))
            else:
                data = _mutated(data, others, chance)
            path.write_bytes(data)
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            watch.on = True
            try:
                kanmeta.load(models[build], path)
            except errors.CheckpointError as error:
                outcome, text = type(error).__name__, str(error)
            except BaseException as error:
                keep = Path(tempfile.gettempdir()) / f"fuzz-{seed}-{i}"
                keep.write_bytes(data)
                raise AssertionError(f"seed {seed}, file {i} ({keep}): {error!r}") from error
            else:
                outcome, text = "loaded", str(path)
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
                watch.on = False
            assert not watch.events, f"seed {seed}, file {i}: {watch.events}"
            outcomes[outcome] += 1
            assert str(path) in text, f"seed {seed}, file {i}: {text}"
            if outcome == "loaded":
                models[build] = build()
                before[build] = state(models[build])
            elif i % 10 == 0 or not isinstance(models[build], Net):
                assert same(state(models[build]), before[build]), f"seed {seed}, file {i}"
            if i == min(500, number // 2):
                most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most) / 1024
        assert grown < MEGABYTES, f"{grown} MB more"
    return outcomes


def _too_long(*_: object) -> None:
    raise TimeoutError(f"more than {SECONDS} seconds")


if __name__ == "__main__":
    torch.set_num_threads(1)
    import warnings

    warnings.simplefilter("ignore", errors.LargerModelWarning)
    sys.stdout.write(f"{run(int(sys.argv[1]), int(sys.argv[2]))}\n")
