"""``distill``: a converted model learns what a trained model of the same architecture knows."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kanmeta import matching
from kanmeta.access import complete_layers
from kanmeta.distill_data import Batches
from kanmeta.distill_report import DistillReport
from kanmeta.distill_work import Work
from kanmeta.errors import PlanError
from kanmeta.initialise import check_generator
from kanmeta.losses import Loss, check_loss
from kanmeta.transfer import check_teacher, plain_teacher, put_back_on_failure

__all__ = ["distill"]

_log = logging.getLogger(__name__)


@torch.inference_mode(False)
def distill(
    student: nn.Module,
    teacher: nn.Module,
    *,
    data: Tensor | Iterable[Any] | str | None = None,
    loss: str | Loss | None = None,
    from_student: bool = False,
    prompt_bits: float | None = None,
    fit_steps: int = 2000,
    layer_steps: int = 300,
    steps: int = 1000,
    batch_size: int = 128,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> DistillReport:
    """Give a converted model the function of a trained one, in place.

    >>> teacher = KAN([40, 32, 10])
    >>> student = kanmeta.convert(KAN([40, 32, 10]), dim_z=9, hidden=9)  # as many as dim_w: exact
    >>> report = kanmeta.distill(student, teacher, fit_steps=1)
    >>> report.coefficient_error < 1e-4
    True

    Stages: the best linear code of the teacher's coefficients (PCA, per meta-learner; with data in
    the metric of each layer's basis at its real inputs); a fit of prompts and meta-learner to the
    coefficients, from there; with data, a fit of every layer's output, and then of the model's. A
    stage that makes things worse, by its own measure, is not kept. With ``dim_z >= dim_w`` the
    result is exact to rounding after the first stage. What the conversion left plain is copied.

    Args:
        student: a converted model.
        teacher: a model of the same architecture, trained; converted or not. Not changed.
        data: inputs, no labels: a tensor, a tuple of tensors (the model's positional arguments), or
            an iterable of batches such as a ``DataLoader``, whose items are a tensor or start with
            one. A tenth of it, 8 batches at most, is held out to choose the best state and to stop;
            of a loader the first ones, so that with ``shuffle=True`` they are trained on as well.
            None: coefficients alone. ``"normal"``: no data either, but coefficients are compared by
            what they do at standard normal inputs of each layer; then layers and outputs are
            matched at such inputs of the model, see :mod:`kanmeta.standard_inputs`, where it takes
            them.
        loss: of the outputs: ``"kl"``, ``"mse"``, or a function (student's, teacher's output) ->
            number. Default: KL divergence where the model gives a matrix ``(N, C)`` with C >= 2,
            which are taken for class scores, else mean squared error; of ``"normal"`` always that.
        from_student: go on from the student as it is, for instance one with few-bit prompts
            (:func:`kanmeta.few_bit_prompts`): only match layers and outputs by gradient, copy
            nothing.
        prompt_bits: from 1 to 8: a last stage of ``steps`` steps in which every prompt is rounded
            to a codebook of its layer. Codes, codebooks and meta-learners are trained together, so
            that ``save`` with as many bits loses nothing. Needs data. 3.33 bits are 10 numbers a
            codebook: saved with ``prompt_bits=4`` they take about 3.3 bits each, as files are
            compressed. Layers of fewer edges may get longer ones, as in :func:`kanmeta.save`.
        fit_steps: steps of the fit to the coefficients.
        layer_steps: steps of matching layers.
        steps: steps of matching outputs.
        batch_size: rows a step, where ``data`` is tensors.
        generator: CPU generator of samples and order; default: torch's global one.
        progress: whether to show a bar on a terminal (needs tqdm).

    Returns:
        What was reached.

    Raises:
        NothingToConvertError: ``student`` is not converted.
        ModelMismatchError: ``teacher`` is another architecture; the message lists the differences.
        PlanError: data, loss or the student's ``hidden`` do not fit.
        After any error ``student`` is as it was. A KeyboardInterrupt leaves the best state so far.
    """
    begin = time.perf_counter()
    layers = complete_layers(student)
    standard = isinstance(data, str)
    if standard and data != "normal":
        raise PlanError(f'data={data!r}: the only text is "normal"; else pass inputs, or None')
    if standard:
        data = None
    if (from_student or prompt_bits is not None) and data is None:
        raise PlanError("from_student and prompt_bits ask for stages that need data: pass data=")
    number = isinstance(prompt_bits, (int, float)) and not isinstance(prompt_bits, bool)
    if prompt_bits is not None and not (number and 1 <= prompt_bits <= 8):
        raise PlanError(f"prompt_bits={prompt_bits!r}: expected a number from 1 to 8, or None")
    for what, count, least in (
        ("fit_steps", fit_steps, 0),
        ("layer_steps", layer_steps, 0),
        ("steps", steps, 0),
        ("batch_size", batch_size, 1),
    ):
        if not isinstance(count, int) or count < least:
            raise PlanError(f"{what}={count!r}: expected a whole number, {least} or more")
    check_loss(loss)
    check_generator(generator)
    if any(t.is_inference() for t in (*student.parameters(), *student.buffers())):
        raise PlanError(
            "the student was made within torch.inference_mode(), and its tensors cannot be changed "
            "here: build the model outside of it"
        )
    plain = plain_teacher(teacher)
    with matching.evaluating(student, plain):
        check_teacher(student, plain, layers)
        batches = None
        if data is not None:
            device = next(iter(layers.values())).prompts.device
            batches = Batches(data, batch_size, device, generator)
        with put_back_on_failure(student):
            work = Work(student, plain, layers, batches, standard, generator)
            total = 0 if from_student else fit_steps * len(work.clusters)
            if standard or data is not None:
                total += layer_steps + steps * (1 + (prompt_bits is not None))
            with _bar(total, progress) as tick:
                if not from_student:
                    work.coefficients(fit_steps, tick)
                if standard:
                    work.made_up(loss, layer_steps, steps, tick)
                name = None
                if batches is not None:
                    few = from_student and prompt_bits is not None  # straight to the last stage
                    counts = (0, 0) if few else (layer_steps, steps)
                    name = work.data(loss, *counts, tick, search=not from_student)
                if prompt_bits is not None:
                    name = work.few_bits(loss, prompt_bits, steps, tick)
            report = work.report(name, time.perf_counter() - begin)
    _log.info("distilled:\n%s", report)
    return report


@contextmanager
def _bar(total: int, wanted: bool) -> Iterator[Callable[[], object]]:
    """A progress bar on a terminal, where tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        wanted = False
    if not wanted or total == 0:
        yield lambda: None
        return
    with tqdm(total=total, desc="distilling", unit="step", disable=None, leave=False) as bar:
        yield bar.update
