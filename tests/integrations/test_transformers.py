"""The drop-ins in transformers itself: its label smoother, and its models with their loss."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from integrations.small_models import CAUSAL, IDS, LABELS, MASKED, VOCABULARY, model_of
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.trainer_pt_utils import LabelSmoother as Stock

from labelsmooth.compat.transformers import LabelSmoother, apply_to

# ---- the label smoother --------------------------------------------------------------------------


def test_the_dataclass_is_the_same() -> None:
    assert dataclasses.asdict(LabelSmoother()) == dataclasses.asdict(Stock())
    mine, stock = inspect.signature(LabelSmoother.__call__), inspect.signature(Stock.__call__)
    assert list(mine.parameters) == list(stock.parameters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("count", [None, 40, torch.tensor(40), torch.full((2, 1), 40)])
@pytest.mark.parametrize("shift", [False, True])
def test_label_smoother(shift: bool, count: Any, dtype: torch.dtype) -> None:
    logits = torch.randn(2, 9, VOCABULARY, dtype=dtype, requires_grad=True)
    labels = LABELS.clone()
    labels[1, 4] = -7
    outputs = {"logits": logits}
    mine = LabelSmoother(0.1)(outputs, labels, shift_labels=shift, num_items_in_batch=count)
    stock = Stock(0.1)(outputs, labels, shift_labels=shift, num_items_in_batch=count)
    assert mine.shape == stock.shape
    assert mine.dtype == (torch.float32 if dtype == torch.bfloat16 else stock.dtype)
    if dtype == torch.bfloat16:  # which there rounds each log-probability
        outputs = {"logits": logits.float()}
        stock = Stock(0.1)(outputs, labels, shift_labels=shift, num_items_in_batch=count)
    torch.testing.assert_close(mine, stock)
    torch.testing.assert_close(
        torch.autograd.grad(mine.sum(), logits),
        torch.autograd.grad(stock.sum(), logits),
    )


# ---- models --------------------------------------------------------------------------------------


def outputs_and_gradients(model: Any, **inputs: Any) -> tuple[Any, list[Tensor]]:
    outputs = model(input_ids=IDS, labels=LABELS, **inputs)
    model.zero_grad()
    outputs.loss.backward()
    return outputs, [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("fused_head", [False, True])
@pytest.mark.parametrize("kind", [*CAUSAL, *MASKED])
def test_without_smoothing_a_model_s_loss_is_its_own(kind: str, fused_head: bool) -> None:
    stock = model_of(kind)
    model = copy.deepcopy(stock)
    apply_to(model, 0.0, fused_head=fused_head)
    for inputs in ({}, {"num_items_in_batch": torch.tensor(23)}):
        expected, gradients = outputs_and_gradients(stock, **inputs)
        made, ours = outputs_and_gradients(model, **inputs)
        assert (made.logits is None) == fused_head
        torch.testing.assert_close(made.loss, expected.loss)
        torch.testing.assert_close(ours, gradients, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(model(IDS).logits, stock(IDS).logits)


@pytest.mark.parametrize("fused_head", [False, True])
def test_smoothed_in_training_not_in_evaluation(fused_head: bool) -> None:
    model = model_of("llama")
    smoothed = Stock(0.1)(model(IDS), LABELS, shift_labels=True)
    plain = model(IDS, labels=LABELS).loss
    apply_to(model, 0.1, fused_head=fused_head)
    torch.testing.assert_close(model(IDS, labels=LABELS).loss, smoothed)
    torch.testing.assert_close(model.eval()(IDS, labels=LABELS).loss, plain)


def test_applied_again() -> None:
    """The last call counts, in all that it says."""
    model = model_of("llama")
    plain, given = type(model), {"labels": LABELS}
    smoothed = Stock(0.2)(model(IDS), LABELS, shift_labels=True)
    apply_to(model, 0.1, fused_head=True)
    apply_to(model, 0.2, fused_head=True)
    outputs = copy.deepcopy(model)(IDS, **given)
    assert outputs.logits is None
    torch.testing.assert_close(outputs.loss, smoothed)
    apply_to(model, 0.2, eval_smoothing=0.2)
    assert type(model) is plain
    assert model(IDS, **given).logits is not None
    torch.testing.assert_close(model.eval()(IDS, **given).loss, smoothed)


@pytest.mark.parametrize("fused_head", [False, True])
def test_options(fused_head: bool) -> None:
    """Class weights and a prior too; what is added to the loss is not in evaluation's."""
    model, weight = model_of("llama"), torch.rand(VOCABULARY)
    stock = model(IDS, labels=LABELS).loss
    labels = torch.nn.functional.pad(LABELS[:, 1:], (0, 1), value=-100)
    options = {"weight": weight, "prior": torch.full((VOCABULARY,), 1 / VOCABULARY)}
    expected = torch.nn.functional.cross_entropy(
        model(IDS).logits.movedim(-1, 1), labels, weight, label_smoothing=0.1
    )
    apply_to(model, 0.1, fused_head=fused_head, **options)
    torch.testing.assert_close(model(IDS, labels=LABELS).loss, expected)
    apply_to(model, 0.0, fused_head=fused_head, lse_square_scale=0.1)
    assert model(IDS, labels=LABELS).loss > stock + 0.1
    torch.testing.assert_close(model.eval()(IDS, labels=LABELS).loss, stock)


def test_a_replica_of_data_parallel() -> None:
    """What it holds for parameters are tensors."""
    model = model_of("llama")
    apply_to(model, 0.1, fused_head=True)
    replicas = {}
    for name, module in model.named_modules():
        replicas[name] = replica = module._replicate_for_data_parallel()
        for key, parameter in module._parameters.items():
            setattr(replica, key, None if parameter is None else parameter.detach().clone())
            replica.__dict__.setdefault("_former_parameters", {})[key] = parameter
        if name:
            parent, _, child = name.rpartition(".")
            replicas[parent]._modules[child] = replica
    outputs = replicas[""](IDS, labels=LABELS, num_items_in_batch=torch.full((1, 1), 14))
    assert outputs.loss.shape == (1, 1)
    expected = model(IDS, labels=LABELS, num_items_in_batch=14).loss
    torch.testing.assert_close(outputs.loss.squeeze(), expected)


def test_shift_labels_and_tuples() -> None:
    stock = model_of("llama")
    model = copy.deepcopy(stock)
    apply_to(model, 0.0, fused_head=True)
    given = {"labels": LABELS, "shift_labels": LABELS.roll(-1, 1)}
    torch.testing.assert_close(model(IDS, **given).loss, stock(IDS, **given).loss)
    torch.testing.assert_close(
        model(IDS, labels=LABELS, return_dict=False)[0],
        stock(IDS, labels=LABELS, return_dict=False)[0],
    )


def test_a_model_with_its_loss_is_copied_pickled_and_saved(tmp_path: Path) -> None:
    model = model_of("llama")
    apply_to(model, 0.1, fused_head=True)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(twin(IDS, labels=LABELS).loss, model(IDS, labels=LABELS).loss)
        twin.eval()
        assert twin(IDS, labels=LABELS).loss < model(IDS, labels=LABELS).loss
    model.save_pretrained(tmp_path)
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)).__name__ == "LlamaForCausalLM"


def test_compiled() -> None:
    model = model_of("llama")
    apply_to(model, 0.1, fused_head=True)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(
        compiled(input_ids=IDS, labels=LABELS).loss, model(input_ids=IDS, labels=LABELS).loss
    )


@pytest.mark.parametrize("kind", ["T5ForConditionalGeneration", "BartForCausalLM"])
def test_a_model_that_has_no_loss_function_of_its_own(kind: str) -> None:
    of = getattr(transformers, kind)
    small = {
        "vocab_size": 50,
        "d_model": 16,
        "num_layers": 1,
        "num_heads": 2,
        "d_ff": 16,
        "d_kv": 8,
    }
    if kind.startswith("Bart"):
        small = {"vocab_size": 50, "d_model": 16, "decoder_layers": 1, "encoder_layers": 1}
    with pytest.raises(TypeError, match="compute_loss_func"):
        apply_to(of(of.config_class(**small)), 0.1)


def test_capped_logits_in_bfloat16() -> None:
    """Gemma caps its logits in bfloat16, step by step, a fused head in float32: its gradients are
    no further from those of a float32 model, within a tenth."""
    whole = model_of("gemma2", final_logit_softcapping=30.0)
    narrow = copy.deepcopy(whole)
    fused = copy.deepcopy(whole)
    apply_to(fused, 0.0, fused_head=True)
    _, truth = outputs_and_gradients(whole)
    with torch.autocast("cpu", torch.bfloat16):
        errors = []
        for model in (narrow, fused):
            _, gradients = outputs_and_gradients(model)
            of = zip(gradients, truth, strict=True)
            errors.append(sum((made - true).square().sum() for made, true in of).sqrt())
    assert errors[1] <= 1.1 * errors[0]
