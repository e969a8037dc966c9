"""The command line that all recipes share."""

import argparse
import fnmatch
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from recipes.data import DataError
from recipes.engine import default_device, leave_group
from recipes.execute import execute
from recipes.job import PROFILES, PROTOCOLS, Job, Place, Profile, Protocol
from recipes.jobs import run_all, submit_all
from recipes.library import FOLDER
from recipes.records import code_state

__all__ = ["Grid", "run"]

Grid = Callable[[Protocol, Profile], list[Job]]


def _arguments(
    recipe: str, doc: str, argv: Sequence[str] | None, variant: str
) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"python -m recipes.{recipe}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        default="fair",
        help="fair: validation data pick the epoch, test data are read once, baseline and Meta "
        "model differ in the meta-learner only; paper: as the paper (default: fair)",
    )
    parser.add_argument(
        "--profile",
        choices=PROFILES,
        default="cpu",
        help="smoke: seconds a job, to see that it runs; cpu: minutes a job on one core; full: "
        "the paper's grid, for a GPU (default: cpu)",
    )
    parser.add_argument("--only", metavar="PATTERN", help="jobs whose name matches, as 'f1-n10-*'")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="only these seeds")
    parser.add_argument(
        "--variant",
        metavar="NAME",
        default=variant,
        help="instead of the paper's cells what is run besides, such as longer; all: everything",
    )
    parser.add_argument(
        "--library",
        type=Path,
        metavar="FOLDER",
        help="layers of the real libraries instead of the reference layers: a folder with "
        "checkouts of efficient-kan, fast-kan, Wav-KAN and torch-conv-kan",
    )
    parser.add_argument("--list", action="store_true", help="print the jobs, run nothing")
    parser.add_argument(
        "--data-root",
        type=Path,
        action="append",
        default=[],
        metavar="PATH",
        help="a folder or file with data sets; may be given more than once",
    )
    parser.add_argument("--download", action="store_true", help="fetch data sets that are missing")
    parser.add_argument(
        "--device",
        help="such as cuda; default: cpu, of image recipes under accelerate launch the GPU that it "
        "picks",
    )
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), default="no")
    parser.add_argument(
        "--compile",
        action="store_true",
        help="fuse Wav-KAN's wavelets by torch.compile: five times as fast on a CPU; needs a C++ "
        "compiler",
    )
    parser.add_argument("--processes", type=int, default=1, help="jobs at a time")
    parser.add_argument("--submitit", choices=("slurm", "local", "debug"), help="use a cluster")
    parser.add_argument("--minutes", type=int, default=240, help="of a cluster's job")
    parser.add_argument("--partition", help="of a Slurm cluster")
    parser.add_argument("--out", type=Path, default=Path(), help="parent of results/ and runs/")
    return parser.parse_args(argv)


def run(
    recipe: str,
    doc: str,
    grid: Grid,
    argv: Sequence[str] | None = None,
    has_library: bool = True,
    has_precision: bool = False,
    variant: str = "",
) -> None:
    """Parse ``argv``, make the jobs and run those that are not done.

    Args:
        recipe: name of the module.
        doc: its docstring, for ``--help``.
        grid: all jobs of a protocol and profile, those first that matter most.
        argv: the command line; default: the program's.
        has_library: whether the models can be made of the real libraries' layers.
        has_precision: whether steps go through :class:`recipes.engine.Engine`.
        variant: of the jobs that run unless ``--variant`` says otherwise.
    """
    args = _arguments(recipe, doc, argv, variant)
    jobs = [
        job
        for job in grid(args.protocol, args.profile)
        if (args.only is None or fnmatch.fnmatchcase(job.name, args.only))
        and (args.seeds is None or job.seed in args.seeds)
        and args.variant in ("all", job.variant)
    ]
    if args.library and not has_library:
        raise SystemExit(f"error: {recipe} has no --library: leave it out")
    if args.library and args.variant not in ("", "all"):
        raise SystemExit("error: --library is a variant of the paper's cells: leave --variant out")
    if args.precision != "no" and not has_precision:
        raise SystemExit(f"error: {recipe} computes in full precision: leave --precision out")
    if args.library:
        os.environ[FOLDER] = str(args.library.resolve())
        jobs = [replace(job, variant="library") for job in jobs if not job.variant]
    if not jobs:
        raise SystemExit(
            f"error: no job matches --only {args.only}, --seeds and --variant: --list --variant "
            "all shows all"
        )
    if args.list:
        print("\n".join(job.stem for job in jobs))
        return
    code = code_state()
    if code["dirty"] is not False:
        print("The code differs from what is committed: the results will say so.")
    place = Place(
        data=tuple(args.data_root),
        download=args.download,
        device=args.device or (default_device() if has_precision else "cpu"),
        precision=args.precision,
        out=args.out,
        code=code,
        compiled=args.compile,
    )
    work = partial(execute, place)
    try:
        if args.submitit:
            options = {"timeout_min": args.minutes, "name": recipe}
            if args.submitit == "slurm" and args.partition:
                options["slurm_partition"] = args.partition
            submit_all(work, jobs, args.submitit, args.out / "runs" / "submitit", options)
        else:
            run_all(work, jobs, args.processes, [job.epochs for job in jobs])
    except DataError as error:
        raise SystemExit(f"error: {error}") from error
    leave_group()
