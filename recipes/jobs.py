"""A list of independent jobs, one after the other or in several processes, with one progress bar.

Every job computes on one thread, so that its result does not depend on how many run beside it.
"""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing.sharedctypes import Synchronized
from typing import TypeVar

import torch
from tqdm import tqdm

from recipes.training import one_thread

__all__ = ["run_all"]

Job = TypeVar("Job")

_finished: "Synchronized[int] | None" = None  # in a worker: epochs done, counted by all workers


def run_all(
    work: Callable[[Job, Callable[[int], object]], str],
    jobs: Sequence[Job],
    processes: int,
    total: int,
) -> None:
    """Call ``work(job, count)`` for each job and print the line that it returns.

    Args:
        work: a function of a module; calls ``count(n)`` after every n units of work.
        jobs: can be pickled.
        processes: 1 works in this process. If a job fails, those that wait are not started.
        total: units of work in all jobs, for the progress bar.
    """
    with tqdm(total=total, unit="epoch", smoothing=0.05, dynamic_ncols=True) as bar:
        if processes == 1:
            with one_thread():
                for job in jobs:
                    bar.write(work(job, bar.update))
            return
        context = multiprocessing.get_context("spawn")  # fork would copy torch's thread pools
        counter = context.Value("q", 0)
        pool = ProcessPoolExecutor(processes, context, _start_worker, (counter,))
        with pool:
            waiting = {pool.submit(_work, work, job) for job in jobs}
            try:
                while waiting:
                    done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                    bar.update(counter.value - bar.n)
                    for future in done:
                        bar.write(future.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _start_worker(counter: "Synchronized[int]") -> None:
    global _finished
    _finished = counter
    torch.set_num_threads(1)


def _count(number: int) -> None:
    assert _finished is not None
    with _finished.get_lock():
        _finished.value += number


def _work(work: Callable[[Job, Callable[[int], object]], str], job: Job) -> str:
    return work(job, _count)
