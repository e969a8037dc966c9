"""recipes.training: normalisation, order, schedule."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from recipes import training
from recipes.data import load_images
from tests.small_images import write_data


@pytest.fixture
def pixels(tmp_path: Path) -> training.Pixels:
    write_data(tmp_path)
    return training.Pixels.of(load_images("mnist", tmp_path))


def test_inputs_are_normalised_by_the_training_set(pixels: training.Pixels) -> None:
    assert pixels.values.dtype == torch.uint8
    assert pixels.values.shape == (136, 784)
    x = pixels.inputs(slice(0, pixels.train))
    assert abs(float(x.mean())) < 1e-5
    assert abs(float(x.std(correction=0)) - 1) < 1e-5
    some = torch.tensor([3, 100])
    assert torch.equal(pixels.inputs(some)[0], x[3])


def test_accuracy_is_the_share_of_right_answers(pixels: training.Pixels) -> None:
    class Knows(nn.Module):
        """Reads the height of the bar; wrong on purpose where the label is 3."""

        def forward(self, x: Tensor) -> Tensor:
            bars = x.view(-1, 14, 56).mean(2)[:, 2:12]
            return torch.where(torch.arange(10) == 3, -math.inf, bars)

    labels = pixels.labels[pixels.train :]
    share = 100 * float((labels != 3).double().mean())
    assert 50 < share < 100
    assert training.accuracy(Knows(), pixels, "test", batch=7) == pytest.approx(share)


class Recorder(nn.Linear):
    """A linear classifier that remembers the rows it was trained on."""

    def __init__(self) -> None:
        super().__init__(784, 10)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.append(x)
        return super().forward(x)


def test_every_epoch_sees_every_image_once_in_its_own_order(pixels: training.Pixels) -> None:
    epochs = {}
    for seed in (0, 1):
        model = Recorder()
        training.fit(
            model, pixels, torch.optim.SGD(model.parameters()), epochs=2, batch=40, seed=seed
        )
        assert [len(x) for x in model.seen] == [40, 40, 16] * 2
        rows = torch.cat(model.seen)
        epochs |= {(seed, 0): rows[:96], (seed, 1): rows[96:]}
    expected = pixels.inputs(slice(0, 96))
    orders = set()
    for rows in epochs.values():
        position = torch.cdist(rows.double(), expected.double()).argmin(1)
        assert torch.equal(position.sort().values, torch.arange(96))
        orders.add(tuple(position.tolist()))
    assert len(orders) == 4


def test_rates_follow_one_cosine_over_all_steps(pixels: training.Pixels) -> None:
    model = Recorder()
    optimizer = torch.optim.SGD(
        [{"params": [model.weight]}, {"params": [model.bias], "lr": 0.2}], 1.0
    )
    rates = []
    optimizer.register_step_post_hook(
        lambda self, args, kwargs: rates.append([group["lr"] for group in self.param_groups])
    )
    training.fit(model, pixels, optimizer, epochs=2, batch=40, seed=0)
    cosine = [0.5 * (1 + math.cos(math.pi * step / 6)) for step in range(6)]
    assert rates == [pytest.approx([c, 0.2 * c]) for c in cosine]
