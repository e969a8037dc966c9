"""A KAN head on a timm backbone: trained, distilled into a few numbers an edge, saved in few bits.

    python examples/timm_kan_head.py           # half a minute
    python examples/timm_kan_head.py --quick

scikit-learn's 8 x 8 digits on a small ResNet with random weights: nothing is downloaded. The
backbone is frozen and runs once; take one with pretrained weights and your images for real use.
"""

import argparse
import copy
import tempfile
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from efficient_kan import KAN
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn

import kanmeta


def features(number: int) -> tuple[Tensor, Tensor]:
    """What the backbone makes of the digits, scaled into the range of the KAN's grid."""
    digits = load_digits()
    images = torch.from_numpy(digits.images[:number]).float()[:, None] / 16
    backbone = timm.create_model("test_resnet", pretrained=False, num_classes=0).eval()
    with torch.no_grad():
        x = backbone(F.interpolate(images, size=64).expand(-1, 3, -1, -1))
    x = (x - x.mean(0)) / x.std(0).clamp(min=1e-6)
    return (x / 3).clamp(-1, 1), torch.from_numpy(digits.target[:number]).long()


def train(head: nn.Module, x: Tensor, y: Tensor, steps: int) -> None:
    """Fit the head's weights to labelled features."""
    optimiser = torch.optim.AdamW(head.parameters(), lr=1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(head(x), y).backward()
        optimiser.step()


def main(quick: bool) -> None:
    """Train, distil without labels, save, load, compare."""
    torch.manual_seed(0)
    x, y = features(300 if quick else 1797)
    test, rest = slice(0, len(x) // 5), slice(len(x) // 5, None)
    head = KAN([x.shape[1], 16 if quick else 64, 10])
    train(head, x[rest], y[rest], 15 if quick else 150)

    student = copy.deepcopy(head)
    kanmeta.convert(student, dim_z=2, hidden=16, clusters="layer")
    steps = 5 if quick else 400
    kanmeta.distill(
        student, head, data=x[rest], prompt_bits=4, fit_steps=steps, layer_steps=steps, steps=steps
    )
    with tempfile.TemporaryDirectory() as folder:
        plain, compact = Path(folder) / "head.safetensors", Path(folder) / "small.safetensors"
        save_file(head.state_dict(), plain)
        kanmeta.save(student, compact, prompt_bits=4)
        fresh = kanmeta.load(KAN([x.shape[1], 16 if quick else 64, 10]), compact)
        for name, model, file in (("KAN", head, plain), ("distilled", fresh, compact)):
            right = (model(x[test]).argmax(1) == y[test]).float().mean()
            print(f"{name:<10} {100 * right:5.1f} % of held-out digits, {file.stat().st_size:,} B")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    main(parser.parse_args().quick)
