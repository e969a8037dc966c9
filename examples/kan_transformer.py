"""A transformer block whose feed-forward part is a KAN, trained converted: sort short sequences.

python examples/kan_transformer.py           # minutes
python examples/kan_transformer.py --quick
"""

import argparse

import torch
import torch.nn.functional as F
from efficient_kan import KAN
from torch import Tensor, nn

import kanmeta


class Block(nn.Module):
    """Attention and a KAN, each with a norm before it and a connection around it."""

    def __init__(self, width: int) -> None:
        """Make a block for tokens of ``width`` numbers."""
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.feed_forward = KAN([width, 2 * width, width], grid_range=[-3, 3])

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, T, width)`` for tokens of that shape."""
        h = self.norm1(x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        h = self.norm2(x)
        return x + self.feed_forward(h.flatten(0, 1)).view_as(h)


class Sorter(nn.Module):
    """Embedding, blocks, and logits of the sorted sequence."""

    def __init__(self, symbols: int, length: int, width: int, blocks: int) -> None:
        """Make a model for sequences of ``length`` out of ``symbols``."""
        super().__init__()
        self.embedding = nn.Embedding(symbols, width)
        self.position = nn.Parameter(torch.randn(length, width) * 0.1)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.logits = nn.Linear(width, symbols)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return ``(N, T, symbols)`` for tokens ``(N, T)``."""
        return self.logits(self.blocks(self.embedding(tokens) + self.position))


def main(quick: bool) -> None:
    """Convert, train, report how many symbols are in the right place."""
    torch.manual_seed(0)
    symbols, length = 16, 8
    model = Sorter(symbols, length, width=16 if quick else 64, blocks=2)
    kanmeta.convert(model, dim_z=2)  # one meta-learner for the KAN layers of all blocks
    print(kanmeta.summary(model))
    rate = 3e-3
    optimiser = torch.optim.AdamW(kanmeta.param_groups(model, lr=rate, prompt_lr=3 * rate))
    for _ in range(10 if quick else 600):
        tokens = torch.randint(symbols, (16 if quick else 128, length))
        optimiser.zero_grad()
        loss = F.cross_entropy(model(tokens).flatten(0, 1), tokens.sort(1).values.flatten())
        loss.backward()
        optimiser.step()
    tokens = torch.randint(symbols, (500, length))
    with torch.no_grad():
        right = (model(tokens).argmax(-1) == tokens.sort(1).values).float().mean()
    print(f"loss {float(loss.detach()):.3f}, {100 * float(right):.1f} % of symbols in their place")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    main(parser.parse_args().quick)
