"""recipes.model_figures; that every figure is drawn: test_recipes.py."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from recipes import images_fc
from recipes.execute import model_of
from recipes.job import Place
from recipes.model_figures import clusters_of_classes, learned_functions
from tests.small_images import write_cifar, write_data


@pytest.mark.parametrize("name", ["fashion-mnist-32-G5-metakan", "cifar-10-32-G3-kan"])
def test_clusters_are_of_the_inputs_that_the_score_is_of(tmp_path: Path, name: str) -> None:
    write_data(tmp_path / "FashionMNIST" / "raw")
    write_cifar(tmp_path / "cifar-10.npz")
    place = Place((tmp_path,), False, "cpu", "no", tmp_path, {})
    job = next(j for j in images_fc.grid("fair", "smoke") if j.name == name)
    task = images_fc.task(job, place)
    seen: list[Tensor] = []

    def note(net: nn.Module, inputs: tuple[Tensor]) -> None:
        seen.append(inputs[0])

    task.model.register_forward_pre_hook(note)
    task.score("test")
    drawing = clusters_of_classes(job, task.model, place)
    assert "40 test images" in drawing
    scored, drawn = seen
    assert len(drawn) == 40
    torch.testing.assert_close(drawn, scored)


def test_functions_of_other_bases_are_refused(tmp_path: Path) -> None:
    job = next(j for j in images_fc.grid("fair", "smoke") if j.model == "FastKAN")
    place = Place((tmp_path,), False, "cpu", "no", tmp_path, {})
    with pytest.raises(SystemExit, match="no B-spline KAN"):
        learned_functions(job, model_of(job), place)
