"""Images for :mod:`recipes.distill_conv`: few to train with, and how a student sees them."""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from kanmeta.distill_data import held_out_batches
from recipes.data import Images
from recipes.images_conv import augmentation
from recipes.training import Pixels, split_order

__all__ = ["Shown", "limited"]


def limited(images: Images, limit: int) -> Images:
    """``limit`` training images, and test images with as many at most that are left out.

    The more there are, the less of a difference between two models is chance.
    """
    order = split_order(len(images.train_images))
    chosen, others = order[:limit], order[limit : 2 * limit]
    return replace(
        images,
        train_images=images.train_images[chosen],
        train_labels=images.train_labels[chosen],
        test_images=torch.cat([images.test_images[:limit], images.train_images[others]]),
        test_labels=torch.cat([images.test_labels[:limit], images.train_labels[others]]),
    )


class Shown:
    """Batches of training images, shifted and mirrored as in training, anew at every pass.

    The first ones, those that ``distill`` holds out, are the same at every pass.

    Args:
        data: the images.
        batch: rows of a batch.
        seed: of their order. Draws for the augmentation are torch's global ones.
    """

    def __init__(self, data: Pixels, batch: int, seed: int) -> None:
        """See the class."""
        self.batch = batch
        self.augment, self.generator = augmentation(data), torch.Generator().manual_seed(seed)
        images = data.inputs(torch.randperm(data.train, generator=self.generator))
        held_out = held_out_batches(math.ceil(data.train / batch)) * batch
        self.first, self.others = images[:held_out], images[held_out:]

    def __iter__(self) -> Iterator[Tensor]:
        """``(N, pixels)`` each."""
        yield from torch.split(self.first, self.batch)
        order = torch.randperm(len(self.others), generator=self.generator)
        for rows in torch.split(order, self.batch) if len(order) else ():
            yield self.augment(self.others[rows])
