"""Figures of the paper that look into trained models: 3, 7, 8, 9 and 10.

    python -m recipes.functions --only 'appendix-b-*' --seeds 0
    python -m recipes.model_figures --figure 9 --recipe functions --only 'appendix-b-*'

Draws one SVG file a job into ``runs/figures/``; ``python -m recipes.report`` puts them on its page.
"""

import argparse
import fnmatch
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from recipes.data import DataError
from recipes.execute import trained
from recipes.figures import axes_of, svg
from recipes.images_run import job_images
from recipes.job import PROFILES, PROTOCOLS, Job, Place
from recipes.laplacian import edge_functions, layer_coefficients
from recipes.models import is_converted
from recipes.unit_ball import Solution

__all__ = ["FIGURES", "main"]

POINTS, IMAGES = 200, 1000
Draw = Callable[[Job, nn.Module, Place], str]


def learned_functions(job: Job, model: nn.Module, place: Place) -> str:
    """Figures 3 and 9: every edge's function, and how alike the coefficients of edges are."""
    if job.config.get("settings", {}).get("base", "kan") != "kan":
        raise SystemExit(
            f"error: {job.name} is no B-spline KAN, of which figures 3 and 9 are: change --only"
        )
    dtype = next(model.parameters()).dtype
    x = torch.linspace(-1, 1, POINTS, dtype=dtype)
    figure, axes = axes_of(2)
    vectors = []
    for n, (layer, weight) in enumerate(layer_coefficients(model)):
        curves = edge_functions(layer, weight, x).detach().flatten(1)
        axes[0].plot(x.numpy(), curves.numpy(), color=f"C{n}", lw=0.8, alpha=0.7)
        axes[0].plot([], [], color=f"C{n}", label=f"layer {n + 1}")
        vectors.append(weight.detach().flatten(0, 1))
    axes[0].set(xlabel="x", title="learned functions")
    axes[0].legend(frameon=False)
    similar = nn.functional.normalize(torch.cat(vectors))
    shown = axes[1].imshow((similar @ similar.T).numpy(), cmap="RdBu_r", vmin=-1, vmax=1)
    figure.colorbar(shown, ax=axes[1])
    axes[1].set(title="cosine similarity of coefficients", xlabel="edge", ylabel="edge")
    axes[1].grid(False)
    return svg(figure, f"As the paper's Figures 3 and 9: {job.stem}.")


def prompt_distances(job: Job, model: nn.Module, place: Place) -> str:
    """Figure 10: distances between the prompts of all edges."""
    if not is_converted(model):
        return ""
    from kanmeta import plot  # only here: matplotlib's import takes a second

    return svg(plot.prompts(model), f"As the paper's Figure 10: {job.stem}.")


def clusters_of_classes(job: Job, model: nn.Module, place: Place) -> str:
    """Figure 7: t-SNE of the outputs for test images."""
    from sklearn.manifold import TSNE  # only here: slow to import

    # As the job's own data: the network must see images that were scaled as in its training.
    data, _ = job_images(job, place, "cpu")
    test = data.part("test")
    rows = slice(test.start, min(test.stop, test.start + IMAGES))
    with torch.no_grad():
        outputs = model.eval()(data.inputs(rows))
    spots = TSNE(random_state=0).fit_transform(outputs.numpy())
    figure, axes = axes_of(1)
    axes[0].scatter(*spots.T, c=data.labels[rows], cmap="tab10", s=6)
    axes[0].set(xticks=[], yticks=[], title=job.model)
    return svg(figure, f"As the paper's Figure 7: {job.stem}, {len(spots)} test images.")


def pointwise_error(job: Job, model: nn.Module, place: Place) -> str:
    """Figure 8: error of a solution on the plane of the first two coordinates."""
    line = torch.linspace(-1, 1, POINTS // 2)
    first, second = torch.meshgrid(line, line, indexing="xy")
    x = torch.zeros(first.numel(), job.config["widths"][0])
    x[:, 0], x[:, 1] = first.flatten(), second.flatten()
    exact, _ = Solution.of(x.shape[1])(x)
    room = 1 - x.square().sum(1)
    with torch.no_grad():
        u = model(x).squeeze(-1) * (room if job.config["hard_boundary"] else 1)
    error = ((u - exact).abs() / exact.abs().max()).masked_fill(room < 0, torch.nan)
    figure, axes = axes_of(1)
    shown = axes[0].imshow(
        error.reshape(first.shape).numpy(), extent=(-1, 1, -1, 1), origin="lower"
    )
    figure.colorbar(shown, ax=axes[0])
    axes[0].set(title="error, in shares of the largest |u|", xlabel="x1", ylabel="x2")
    axes[0].grid(False)
    return svg(figure, f"As the paper's Figure 8: {job.stem}; all other coordinates are 0.")


FIGURES: dict[str, Draw] = {
    "3": learned_functions,
    "7": clusters_of_classes,
    "8": pointwise_error,
    "9": learned_functions,
    "10": prompt_distances,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.model_figures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--figure", choices=FIGURES, required=True)
    parser.add_argument("--recipe", choices=("functions", "images_fc", "pde"), required=True)
    parser.add_argument("--only", metavar="PATTERN", required=True, help="names of jobs")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="fair")
    parser.add_argument("--profile", choices=PROFILES, default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-root", type=Path, action="append", default=[])
    parser.add_argument("--out", type=Path, default=Path(), help="parent of runs/")
    args = parser.parse_args(argv)
    place = Place(tuple(args.data_root), False, "cpu", "no", args.out, {})
    grid = importlib.import_module(f"recipes.{args.recipe}").grid(args.protocol, args.profile)
    jobs = [
        j
        for j in grid
        if j.seed == args.seed and not j.variant and fnmatch.fnmatchcase(j.name, args.only)
    ]
    if not jobs:
        raise SystemExit(f"error: no job of {args.recipe} matches --only {args.only}")
    folder = args.out / "runs" / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for job in jobs:
        try:
            drawing = FIGURES[args.figure](job, trained(job, place), place)
        except (FileNotFoundError, DataError) as error:
            raise SystemExit(f"error: {error}") from error
        if drawing:
            path = folder / f"figure{args.figure}-{job.stem}.svg"
            path.write_text(drawing)
            print(path)


if __name__ == "__main__":
    main()
