"""The drop-ins in transformers itself: its label smoother, its models, its Trainer."""

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
import transformers.trainer
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_pt_utils import LabelSmoother as Stock

from labelsmooth.compat.transformers import (
    LabelSmoother,
    apply_to,
    compute_loss_func,
    patch_trainer,
)

VOCABULARY = 199
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "n_embd": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "n_layer": 2,
    "num_attention_heads": 4,
    "n_head": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_local_experts": 2,
    "num_experts_per_tok": 1,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "attention_dropout": 0.0,
    "dropout": 0.0,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CAUSAL = {  # each with what it does to its logits, or to its loss
    "llama": {},
    "qwen3": {},
    "mistral": {},
    "gemma2": {"final_logit_softcapping": 1.5},
    "gemma3_text": {"final_logit_softcapping": 1.5},
    "gpt2": {},
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 4.0},
    "mixtral": {"output_router_logits": True},  # whose loss has a second part
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "phi": {},  # whose head has a bias
}
MASKED = {"modernbert": {"global_attn_every_n_layers": 1}}


def model_of(kind: str, **options: Any) -> Any:
    default = AutoConfig.for_model(kind)
    small = {name: value for name, value in SMALL.items() if hasattr(default, name)}
    torch.manual_seed(0)
    of = AutoModelForMaskedLM if kind in MASKED else AutoModelForCausalLM
    config = AutoConfig.for_model(kind, **{**small, **(CAUSAL | MASKED)[kind], **options})
    return of.from_config(config).train()


def some_labels(ids: Tensor) -> Tensor:
    labels = ids.clone()
    labels[0, :3] = -100
    return labels


IDS = torch.randint(3, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))
LABELS = some_labels(IDS)


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


# ---- the Trainer ---------------------------------------------------------------------------------


def trained(model: Any, folder: Path, *, bf16: bool = False, **options: Any) -> list[Any]:
    """Losses and gradient norms of four steps of two batches each, and the loss of evaluation."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for length in range(8, 24):  # each of another number of labels
        ids = torch.randint(3, VOCABULARY, (24,), generator=generator)
        row = {"input_ids": ids, "labels": ids.where(torch.arange(24) < length, -100)}
        if model.config.is_encoder_decoder:  # what a collator of such models makes of labels
            row["decoder_input_ids"] = ids.roll(1)
        rows.append(row)
    smoothing = options.pop("label_smoothing_factor", 0.0)
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=4,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        logging_steps=1,
        bf16=bf16,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        label_smoothing_factor=smoothing,
        seed=0,
    )
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows, **options)
    trainer.train()
    logged = [log for log in trainer.state.log_history if "grad_norm" in log]
    assert len(logged) == 4
    steps = [value for log in logged for value in (log["loss"], log["grad_norm"])]
    return [*steps, trainer.evaluate()["eval_loss"]]


@pytest.mark.parametrize(
    ("kind", "bf16"), [("llama", False), ("llama", True), ("gemma2", False), ("gpt2", False)]
)
def test_trainer(kind: str, bf16: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = trained(model_of(kind), tmp_path, bf16=bf16, label_smoothing_factor=0.1)

    def same(made: list[Any]) -> None:
        assert made == pytest.approx(stock, rel=1e-4)

    loss_func = compute_loss_func(label_smoothing=0.1, shift=True)
    same(trained(model_of(kind), tmp_path, bf16=bf16, compute_loss_func=loss_func))
    for fused_head in (False, True):
        model = model_of(kind)
        apply_to(model, 0.1, eval_smoothing=0.1, fused_head=fused_head)
        same(trained(model, tmp_path, bf16=bf16))
    monkeypatch.setattr(transformers.trainer, "LabelSmoother", Stock)  # put back after this
    patch_trainer()
    assert transformers.trainer.LabelSmoother is LabelSmoother
    same(trained(model_of(kind), tmp_path, bf16=bf16, label_smoothing_factor=0.1))


def bart() -> Any:
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1}
    sizes |= {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = transformers.BartConfig(vocab_size=VOCABULARY, dropout=0.0, **sizes)
    return transformers.BartForConditionalGeneration(config)


def t5() -> Any:
    sizes = {"d_model": 32, "d_ff": 32, "d_kv": 8, "num_layers": 1, "num_heads": 4}
    config = transformers.T5Config(vocab_size=VOCABULARY, dropout_rate=0.0, **sizes)
    return transformers.T5ForConditionalGeneration(config)


@pytest.mark.parametrize("made_of", [bart, t5])
def test_trainer_of_an_encoder_and_a_decoder(made_of: Any, tmp_path: Path) -> None:
    """Models that are not told the number of labels, so that the Trainer takes means of means with
    its own label smoother: as `patch_trainer` does. `compute_loss_func` divides by all labels of a
    step."""

    def result(**options: Any) -> list[Any]:
        torch.manual_seed(0)
        return trained(made_of(), tmp_path, **options)

    stock = result(label_smoothing_factor=0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers.trainer, "LabelSmoother", LabelSmoother)
        assert result(label_smoothing_factor=0.1) == pytest.approx(stock, rel=1e-4)

    def their_func(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        return Stock(0.1)(outputs, labels, num_items_in_batch=num_items_in_batch)

    stock = result(compute_loss_func=their_func)
    loss_func = compute_loss_func(label_smoothing=0.1, shift=False)
    assert result(compute_loss_func=loss_func) == pytest.approx(stock, rel=1e-4)


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
