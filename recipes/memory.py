"""Peak memory and step time of converted models, against the KAN, a compiled KAN and an MLP.

    python -m recipes.memory --upstream CHECKOUTS --paper CHECKOUT    # all cases, resumable
    python -m recipes.memory --case small-batch --quick
    python -m recipes.memory_growth --upstream CHECKOUTS              # against sizes, with plots
    python -m recipes.memory_report                                   # rewrites the tables

A step is forward, backward and Adam in float32. All variants of a case live in one process and
take turns in random order, so that what else runs on the machine hits all alike; a step's time is
the median of the process's CPU time (on a GPU: of time on the wall). Peak memory is measured three
times: by torch's allocator, by counting the bytes of all tensors that are alive (parameters,
gradients, Adam's state, inputs, activations), and as the growth of a fresh process's resident
memory. One JSON file a case; a case that was measured with the same, committed code is skipped.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from recipes.checkouts import used_files
from recipes.memory_cases import NAMES, Case, Origins, make_cases
from recipes.memory_measure import COMPILED, add_options, alone, measure, resident, variants
from recipes.memory_report import case_table
from recipes.records import code_state, hardware, read_json, versions, write_json

__all__ = ["main"]


def _config(name: str, case: Case, options: argparse.Namespace) -> dict[str, Any]:
    return {
        "case": name,
        "title": case.title,
        "variants": variants(case),
        "repeats": min(case.repeats, 3) if options.quick else case.repeats,
        "resident": not options.quick and options.device.type == "cpu",
        "libraries": options.upstream is not None,
    }


def run(name: str, case: Case, options: argparse.Namespace) -> Mapping[str, Any]:
    """Measure a case and write its file, unless that was done before with the same code."""
    config, code = _config(name, case, options), code_state()
    machine = hardware(options.device)
    path = options.out / f"{name}.json"
    if path.exists() and code["dirty"] is False:
        before = read_json(path)
        if (before["config"], before["code"], before["hardware"]) == (config, code, machine):
            return before
    rows = measure(case, config["variants"], config["repeats"], options.device)
    if config["resident"]:
        passed = ["--threads", str(options.threads)]
        for key in ("upstream", "paper"):
            if (folder := getattr(options, key)) is not None:
                passed += [f"--{key}", str(folder)]
        for variant in rows:
            if variant != COMPILED:  # the compiler itself takes more
                rows[variant]["resident_bytes"] = resident(name, variant, passed)
    result = {
        "config": config,
        "variants": rows,
        "code": code,
        "versions": versions(),
        "hardware": machine,
        "files": used_files(),
    }
    write_json(path, result)
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the cases that are asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--case", choices=NAMES, action="append", help="default: all")
    parser.add_argument("--quick", action="store_true", help="3 steps, no fresh processes")
    add_options(parser)
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    cases = make_cases(Origins(options.upstream, options.paper))
    if options.alone:
        print(alone(cases[options.case[0]], options.alone))
        return
    for name in options.case or NAMES:
        print(case_table(run(name, cases[name], options)), flush=True)


if __name__ == "__main__":
    main()
