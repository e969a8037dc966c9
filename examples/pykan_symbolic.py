"""pykan's notebook "from data to a formula" on a converted model.

    python examples/pykan_symbolic.py           # minutes: LBFGS of pykan
    python examples/pykan_symbolic.py --quick   # a few steps, no formula worth reading

f(x) = exp(sin(pi x1) + x2^2). Everything after ``convert`` is pykan's own code.
"""

import argparse
import tempfile

import torch
from kan import KAN
from kan.utils import create_dataset

import kanmeta


def main(quick: bool) -> None:
    """Fit, prune, fit, make symbolic, fit."""
    steps = 1 if quick else 20
    dataset = create_dataset(
        lambda x: torch.exp(torch.sin(torch.pi * x[:, [0]]) + x[:, [1]] ** 2),
        n_var=2,
        train_num=50 if quick else 1000,
    )
    with tempfile.TemporaryDirectory() as folder:  # prune() of pykan writes there, asked or not
        model = KAN(width=[2, 5, 1], grid=5, k=3, seed=1, auto_save=False, ckpt_path=folder)
        # LBFGS wants a smooth meta-learner; a model as small as this one does not shrink
        kanmeta.convert(model, dim_z=4, hidden=16, activation="silu")
        model.fit(dataset, opt="LBFGS", steps=steps, lamb=0.01)
        model = model.prune(node_th=0 if quick else 1e-2, edge_th=0 if quick else 3e-2)
        print(f"after pruning {model.width}, still converted: {[*kanmeta.prompts(model)]}")
        model.fit(dataset, opt="LBFGS", steps=steps)
        library = ["x"] if quick else ["x", "x^2", "exp", "sin"]
        model.auto_symbolic(lib=library, verbose=0)
        model.fit(dataset, opt="LBFGS", steps=steps, update_grid=False)
        print("formula:", model.symbolic_formula()[0][0])
        plain = kanmeta.materialize(model)  # pykan's own model, symbolic functions and all
        print(f"a plain {type(plain.act_fun[0]).__name__} again")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    main(parser.parse_args().quick)
