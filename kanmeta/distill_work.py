"""The stages of one run of ``distill``, and what its report needs of them."""

import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from kanmeta import code_stage, gram_matrices, layer_matching, matching
from kanmeta.binding import Binding
from kanmeta.distill_data import Batches
from kanmeta.distill_report import DistillReport, LayerReport, Stage
from kanmeta.errors import PlanError
from kanmeta.layer_metric import first_tensor
from kanmeta.linear_code import pca_floor
from kanmeta.losses import Loss, resolve_loss
from kanmeta.matching import relative
from kanmeta.standard_inputs import standard_inputs
from kanmeta.transfer import copy_plain, learnt, put_all, put_back

__all__ = ["Work"]


class Work:
    """One run.

    Args:
        student: a converted model.
        teacher: an unconverted one of its architecture.
        layers: the student's converted ones.
        batches: inputs, or None.
        standard: without inputs: whether to assume that every layer's are standard normal.
        generator: of samples.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        layers: Mapping[str, Binding],
        batches: Batches | None,
        standard: bool,
        generator: torch.Generator | None,
    ) -> None:
        """See the class."""
        self.standard = standard
        self.student, self.teacher, self.layers = student, teacher, layers
        self.batches, self.generator = batches, generator
        self.targets = {
            name: b.spec.read(teacher.get_submodule(name)).reshape(-1, b.spec.dim_w)
            for name, b in layers.items()
        }
        self.sizes = {n: float(w.double().square().sum()) for n, w in self.targets.items()}
        metas = dict.fromkeys(b.meta_learner for b in layers.values())
        self.clusters = [[n for n, b in layers.items() if b.meta_learner is m] for m in metas]
        self.stages: list[Stage] = []

    def coefficients(self, steps: int, tick: Callable[[], object]) -> None:
        """Linear code of every cluster, then its fit."""
        start = time.perf_counter()
        known = gram_matrices.measured(
            self.teacher, self.layers, self.batches, self.standard, self.generator
        )
        clusters = []
        for names in self.clusters:
            layers, coefficients = [self.layers[n] for n in names], [self.targets[n] for n in names]
            metric = gram_matrices.pooled([known.get(n) for n in names])
            coded = code_stage.linear(layers, coefficients, metric)
            clusters.append((layers, coefficients, coded))
        copy_plain(self.student, self.teacher, self.layers)
        put_all([pair for b, _, coded in clusters for pair in code_stage.values(b, coded)])
        if self.batches is None and not self.standard:
            note = "of the coefficients"
        else:
            note = f"in the metric of the basis in {len(known)} of {len(self.layers)} layers"
        self._stage("linear code", start, note)
        start = time.perf_counter()
        for layers, coefficients, coded in clusters:
            try:
                code_stage.fit(coded, coefficients, steps, self.generator, tick)
            finally:  # also after an interruption: the best so far
                put_all(code_stage.values(layers, coded))
        self._stage("meta-learner", start)

    def made_up(
        self,
        loss: str | Loss | None,
        layer_steps: int,
        steps: int,
        tick: Callable[[], object],
    ) -> None:
        """Match layers, then outputs, at inputs that are made up, where the model takes such."""
        if not layer_steps and not steps:
            return
        start, what = time.perf_counter(), ", standard inputs"
        inputs = standard_inputs(self.teacher, self.layers, self.generator)
        if inputs is None:
            note = "left out: the model does not take inputs of its first layer"
            self._stage("standard inputs", start, note)
            return
        device = next(iter(self.layers.values())).prompts.device
        batches = Batches(inputs, 0, device, self.generator)
        if layer_steps:
            note = layer_matching.match_layers(
                self.teacher, self.layers, batches, layer_steps, tick
            )
            self._stage(f"layer outputs{what}", start, note)
        if steps:
            start = time.perf_counter()
            try:
                # KL would see little but which class wins: far from data, scores are sure of one.
                judge = resolve_loss("mse" if loss is None else loss, self._output(batches))
            except PlanError as error:
                self._stage(f"outputs{what}", start, f"left out: {error}")
                return
            self._outputs(batches, *judge, steps, tick, what)

    def data(
        self,
        loss: str | Loss | None,
        layer_steps: int,
        steps: int,
        tick: Callable[[], object],
        search: bool,
    ) -> str | None:
        """Match layers, then outputs; return the loss's name, if it was asked."""
        assert self.batches is not None
        if not layer_steps and not steps:
            return None
        name, function = resolve_loss(loss, self._output(self.batches))
        if layer_steps:
            before = self._held_out(function)
            kept = [(p, p.detach().clone()) for p in learnt(self.layers)]
            start, worse = time.perf_counter(), False
            try:
                note = layer_matching.match_layers(
                    self.teacher, self.layers, self.batches, layer_steps, tick, search
                )
            finally:  # also after an interruption: better layers need not make a better model
                worse = self._held_out(function) > before
                if worse:
                    put_back(kept)
            note += "; not kept: the outputs got worse" if worse else ""
            self._stage("layer outputs", start, note)
        if steps:
            self._outputs(self.batches, name, function, steps, tick)
        return name

    def few_bits(
        self, loss: str | Loss | None, bits: float, steps: int, tick: Callable[[], object]
    ) -> str:
        """Match outputs with prompts of few bits; return the loss's name."""
        assert self.batches is not None
        name, function = resolve_loss(loss, self._output(self.batches))
        what = f", {bits:g} bits"
        self._outputs(self.batches, name, function, steps, tick, what, int(2**bits))
        return name

    def _output(self, batches: Batches) -> Tensor:
        """Of the student, with gradients; a PlanError where outputs cannot be matched."""
        with matching.only_trained(learnt(self.layers)):
            output = first_tensor(self.student(*batches.held_out[0]))
        if not output.requires_grad:
            raise PlanError(
                "the first tensor that the model gives is not changed by the converted layers, or "
                "not differentiable: expected its outputs to be matched. Let it give them first"
            )
        return output

    def _outputs(
        self,
        batches: Batches,
        name: str,
        loss: Loss,
        steps: int,
        tick: Callable[[], object],
        what: str = "",
        levels: int | None = None,
    ) -> None:
        """Match outputs; ``what`` is for the report."""
        start = time.perf_counter()
        note = matching.match_outputs(
            self.student, self.teacher, self.layers, batches, loss, steps, tick, levels
        )
        self._stage(f"outputs ({name}){what}", start, note)

    @torch.no_grad()
    def _held_out(self, loss: Loss) -> float:
        assert self.batches is not None
        pairs = matching.held_out_outputs(self.student, self.teacher, self.batches)
        losses = [float(loss(ours, theirs)) for ours, theirs in pairs]
        return sum(losses) / len(losses)

    def _errors(self) -> dict[str, float]:
        return {n: code_stage.layer_error(b, self.targets[n]) for n, b in self.layers.items()}

    def _stage(self, name: str, start: float, note: str = "") -> None:
        error = relative(sum(self._errors().values()), sum(self.sizes.values()))
        self.stages.append(Stage(name, error, time.perf_counter() - start, note))

    @torch.no_grad()
    def report(self, loss: str | None, seconds: float) -> DistillReport:
        """Measure what was reached."""
        errors = self._errors()
        floors: dict[str, float] = {}
        for names in self.clusters:
            dim_z = self.layers[names[0]].meta_learner.dim_z
            floors |= zip(names, pca_floor([self.targets[n] for n in names], dim_z), strict=True)
        functions: Mapping[str, float] = {}
        output_error = agreement = None
        if self.batches is not None:
            functions = layer_matching.layer_errors(self.teacher, self.layers, self.batches)
            pairs = matching.held_out_outputs(self.student, self.teacher, self.batches)
            output_error = matching.output_error(pairs)
            if pairs[0][1].ndim == 2 and pairs[0][1].shape[1] >= 2:
                ours, theirs = (torch.cat([p[i] for p in pairs]) for i in (0, 1))
                agreement = float((ours.argmax(1) == theirs.argmax(1)).double().mean())
        return DistillReport(
            layers=tuple(
                LayerReport(
                    name,
                    b.spec.edges,
                    b.spec.dim_w,
                    relative(errors[name], self.sizes[name]),
                    relative(floors[name], self.sizes[name]),
                    functions.get(name),
                )
                for name, b in self.layers.items()
            ),
            stages=tuple(self.stages),
            coefficient_error=relative(sum(errors.values()), sum(self.sizes.values())),
            pca_floor=relative(sum(floors.values()), sum(self.sizes.values())),
            loss=loss,
            output_error=output_error,
            agreement=agreement,
            seconds=seconds,
        )
