"""Training prompts that can only be the entries of a small codebook."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kanmeta.codebook import layer_levels, quantise

__all__ = ["RoundedPrompts"]


class RoundedPrompts:
    """Full-precision numbers behind few-bit prompts: trained with the gradient at the rounded ones.

    Each step the prompts are the full-precision numbers, each replaced by the nearest entry of its
    codebook, and the entries are the means of the numbers next to them. So an edge changes its code
    when its gradients have carried it half-way to the next one.

    Args:
        prompts: of each layer, ``(*edge_shape, dim_z)``; written to.
        levels: entries of a codebook of the largest layer, see
            :func:`kanmeta.codebook.layer_levels`. Each layer has one for each number of a prompt.

    Attributes:
        latent: of each layer, what to give to an optimiser.
    """

    def __init__(self, prompts: Sequence[Tensor], levels: int) -> None:
        """See the class."""
        self._prompts = prompts
        self.latent = [z.detach().clone().requires_grad_() for z in prompts]
        columns = [z.detach().reshape(-1, z.shape[-1]).T for z in prompts]
        entries = layer_levels(levels, [c.shape[1] for c in columns])
        self._books = [
            [quantise(column, most)[0] for column in layer]
            for layer, most in zip(columns, entries, strict=True)
        ]

    @torch.no_grad()
    def write(self) -> None:
        """Round the full-precision numbers into the prompts."""
        for prompts, latent, books in zip(self._prompts, self.latent, self._books, strict=True):
            columns = latent.reshape(-1, latent.shape[-1]).T
            for place, column in enumerate(columns):
                book = books[place]
                codes = torch.bucketize(column.contiguous(), (book[1:] + book[:-1]) / 2)
                number = torch.zeros_like(book).index_add_(0, codes, torch.ones_like(column))
                total = torch.zeros_like(book).index_add_(0, codes, column)
                means = torch.where(number > 0, total / number.clamp(min=1), book)
                prompts.view(-1, prompts.shape[-1])[:, place] = means[codes]
                books[place] = means.sort().values

    def pass_gradients(self) -> None:
        """Hand the gradients of the prompts over to the full-precision numbers."""
        for prompts, latent in zip(self._prompts, self.latent, strict=True):
            latent.grad, prompts.grad = prompts.grad, None
