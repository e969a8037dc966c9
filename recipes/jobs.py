"""A list of independent jobs: one after the other, in several processes, or on a cluster.

joblib starts the processes, submitit hands jobs to Slurm. Every job computes on one thread of the
CPU, so that its result does not depend on how many run beside it.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from recipes.training import one_thread

__all__ = ["run_all", "submit_all"]

Job = TypeVar("Job")
Work = Callable[[Job, Callable[[int], object]], str]


def run_all(work: Work[Job], jobs: Sequence[Job], processes: int, sizes: Sequence[int]) -> None:
    """Call ``work(job, count)`` for each job and print the line that it returns.

    Args:
        work: a function of a module; calls ``count(n)`` after every n units of work.
        jobs: can be pickled.
        processes: 1 works in this process. If a job fails, those that wait are not started.
        sizes: units of work of each job, for the progress bar.
    """
    with tqdm(total=sum(sizes), unit="epoch", smoothing=0.05, dynamic_ncols=True) as bar:
        if processes == 1:
            with one_thread():
                for job in jobs:
                    bar.write(work(job, bar.update))
            return
        for place, line in _in_processes(work, jobs, processes):
            bar.update(sizes[place])
            bar.write(line)


def _in_processes(
    work: Work[Job], jobs: Sequence[Job], processes: int
) -> Iterator[tuple[int, str]]:
    from joblib import Parallel, delayed  # only where asked for

    parallel = Parallel(n_jobs=processes, return_as="generator_unordered", batch_size=1)
    yield from parallel(delayed(_alone)(work, place, job) for place, job in enumerate(jobs))


def _alone(work: Work[Job], place: int, job: Job) -> tuple[int, str]:
    with one_thread():
        return place, work(job, _ignore)


def _ignore(number: int) -> None:
    pass


def submit_all(
    work: Work[Job], jobs: Sequence[Job], cluster: str, folder: Path, options: dict[str, Any]
) -> None:
    """Hand each job to a cluster through submitit, wait, and print the lines.

    A job that the cluster stops early is put into the queue again and goes on after its last
    finished epoch.

    Args:
        work, jobs: see :func:`run_all`.
        cluster: submitit's name: ``slurm``, ``local`` or ``debug``.
        folder: for submitit's logs; all machines must see it, and the results.
        options: of ``AutoExecutor.update_parameters``, such as ``timeout_min`` and
            ``slurm_partition``.
    """
    import submitit  # optional: only a cluster needs it

    executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
    executor.update_parameters(**options)
    with executor.batch():
        waiting = [executor.submit(_Requeued(work), job) for job in jobs]
    for job in submitit.helpers.as_completed(waiting):
        print(job.result())


class _Requeued:
    """A call that submitit may stop and start again; what it had finished is on disk."""

    def __init__(self, work: Work[Any]) -> None:
        self.work = work

    def __call__(self, job: Any) -> str:
        return _alone(self.work, 0, job)[1]

    def checkpoint(self, job: Any) -> Any:
        import submitit

        return submitit.helpers.DelayedSubmission(self, job)
