"""Train a KAN, train its conversion, save, load in a second process, compare. Five minutes at most.

    python -m recipes.demo                    # Fashion-MNIST if it is here, else 8 x 8 digits
    python -m recipes.demo --library pykan    # the real pykan, on the digits

Everything goes into a temporary folder unless --out names one.
"""

import argparse
import importlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn
from tqdm import tqdm

import kanmeta
from recipes.data import DataError, Images, load_images
from recipes.records import REPOSITORY, counts
from recipes.reference import efficient_kan
from recipes.training import Pixels, fit, one_thread

__all__ = ["main"]

LIBRARIES = ("efficient-kan", "pykan")  # the first as this repository's reference layers
SEED, BATCH, HIDDEN = 0, 128, 32
EPOCHS = {"fashion-mnist": 4, "digits": 40}  # each model trains for about half a minute
LR, PROMPT_LR = 1e-3, 1e-2  # AdamW's usual rate; prompts are few and bear a larger one
DIGITS_TEST = 360  # of 1,797


@dataclass(frozen=True)
class Outcome:
    """What the table says of a model."""

    accuracy: float
    trainable: int
    file_bytes: int
    seconds: float


def find_images(library: str, root: Path | None) -> Images:
    """Fashion-MNIST; scikit-learn's digits where it is missing, and for pykan, which is slow."""
    if library != "pykan":
        try:
            return load_images("fashion-mnist", root)
        except DataError as error:
            print(f"{error}\nTaking scikit-learn's digits instead.", file=sys.stderr)
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(SEED))
    values = torch.from_numpy(digits.images * 15).to(torch.uint8)[order]  # were 0 to 16
    labels = torch.from_numpy(digits.target).long()[order]
    test, train = slice(DIGITS_TEST), slice(DIGITS_TEST, None)
    return Images(
        "digits", Path("scikit-learn"), values[train], labels[train], values[test], labels[test]
    )


def build(library: str, inputs: int, seed: int) -> nn.Module:
    """Return a fresh model of ``library``, ``[inputs, HIDDEN, 10]``."""
    widths = [inputs, HIDDEN, 10]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if library == "efficient-kan":
            return efficient_kan.KAN(widths)
        kan = importlib.import_module("kan")  # only if asked for: optional, slow to import
        model: nn.Module = kan.KAN(widths, grid=5, k=3, seed=seed, auto_save=False).speed()
    # Four numbers an edge for symbolic formulas, which speed() has switched off.
    model.symbolic_fun.requires_grad_(False)
    return model


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: Pixels, epochs: int) -> float:
    """Train under a progress bar; seconds it took."""
    with tqdm(total=epochs, unit="epoch") as bar:
        return fit(
            model, data, optimizer, epochs=epochs, batch=BATCH, seed=SEED, on_epoch=bar.update
        )


def logits(model: nn.Module, data: Pixels) -> Tensor:
    """Outputs for the test images, ``(N, 10)``."""
    with torch.no_grad():
        y: Tensor = model.eval()(data.inputs(slice(data.train, None)))
    return y


def outcome(y: Tensor, data: Pixels, model: nn.Module, file: Path, seconds: float) -> Outcome:
    """Measure a trained model whose outputs are ``y``."""
    right = (y.argmax(1) == data.labels[data.train :]).double().mean()
    return Outcome(100 * float(right), counts(model)["trainable"], file.stat().st_size, seconds)


def run(library: str, root: Path | None, folder: Path) -> None:
    """Do it all; files go to ``folder``."""
    images = find_images(library, root)
    data, epochs = Pixels.of(images), EPOCHS[images.name]
    inputs = data.values.shape[1]
    print(f"{images.name} from {images.folder}: {data.train} images to train on\n")

    print(f"1. A KAN as {library} makes it, [{inputs}, {HIDDEN}, 10]")
    plain = build(library, inputs, SEED)
    seconds = train(plain, torch.optim.AdamW(plain.parameters(), lr=LR), data, epochs)
    plain_file = folder / "kan.safetensors"
    save_file(plain.state_dict(), plain_file)
    before = outcome(logits(plain, data), data, plain, plain_file, seconds)

    print("\n2. Another one, converted before it is trained: kanmeta.convert(model)")
    model = build(library, inputs, SEED)
    print(kanmeta.plan(model))
    kanmeta.convert(model, generator=torch.Generator().manual_seed(SEED))
    groups = kanmeta.param_groups(model, lr=LR, prompt_lr=PROMPT_LR)
    seconds = train(model, torch.optim.AdamW(groups, lr=LR), data, epochs)
    file = folder / "metakan.safetensors"
    kanmeta.save(model, file)
    y = logits(model, data)
    after = outcome(y, data, model, file, seconds)

    print(f"\n3. What kanmeta.save(model, {file.name!r}) wrote")
    with safe_open(file, "pt") as stored:
        for name in stored.keys():  # noqa: SIM118 - it is no mapping
            shape = stored.get_slice(name).get_shape()
            print(f"   {name:<40} {' x '.join(map(str, shape))}")

    print("\n4. kanmeta.load into a fresh model, in a second process")
    theirs = outputs_of_second_process(library, root, folder)
    if not torch.equal(theirs, y):
        raise SystemExit("FAILED: the loaded model's outputs differ from the saved one's")
    print(f"   its {len(y)} outputs equal those of the model that was saved, bit for bit\n")
    print(table(before, after))


def outputs_of_second_process(library: str, root: Path | None, folder: Path) -> Tensor:
    """Logits as :func:`second_process` computes them in a process of its own."""
    command = [sys.executable, "-m", "recipes.demo", "--library", library]
    command += ["--load-from", str(folder.resolve())]
    command += [] if root is None else ["--data-root", str(root.resolve())]
    subprocess.run(command, check=True, cwd=REPOSITORY)
    return load_file(folder / "outputs.safetensors")["logits"]


def second_process(library: str, root: Path | None, folder: Path) -> None:
    """Load the saved model into a fresh one and write its outputs."""
    data = Pixels.of(find_images(library, root))
    fresh = build(library, data.values.shape[1], SEED + 1)  # only what the file says may matter
    model = kanmeta.load(fresh, folder / "metakan.safetensors")
    save_file({"logits": logits(model, data)}, folder / "outputs.safetensors")


def table(before: Outcome, after: Outcome) -> str:
    """Both models side by side."""
    rows = [
        ("", "plain", "converted", "ratio"),
        ("test accuracy, %", f"{before.accuracy:.2f}", f"{after.accuracy:.2f}", ""),
        _row("trainable parameters", before.trainable, after.trainable),
        _row("bytes on disk", before.file_bytes, after.file_bytes),
        ("seconds to train", f"{before.seconds:.0f}", f"{after.seconds:.0f}", ""),
    ]
    return "\n".join(f"{a:<22}{b:>12}{c:>12}{d:>8}" for a, b, c, d in rows)


def _row(title: str, before: int, after: int) -> tuple[str, str, str, str]:
    return title, f"{before:,}", f"{after:,}", f"{before / after:.1f}x"


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--library", choices=LIBRARIES, default=LIBRARIES[0])
    parser.add_argument("--data-root", type=Path, metavar="PATH", help="where Fashion-MNIST is")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="keep the files here")
    parser.add_argument("--load-from", type=Path, help=argparse.SUPPRESS)  # the second process
    args = parser.parse_args(argv)
    with ExitStack() as stack:
        stack.enter_context(one_thread())
        if args.load_from:
            second_process(args.library, args.data_root, args.load_from)
            return
        folder = args.out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        run(args.library, args.data_root, folder)


if __name__ == "__main__":
    main()
