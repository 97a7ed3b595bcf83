"""The Trainer of Hugging Face, with its own label smoother and with each way to put ours there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import transformers.trainer
from integrations.small_models import VOCABULARY, model_of
from torch import Tensor
from transformers import Trainer, TrainingArguments
from transformers.trainer_pt_utils import LabelSmoother as Stock

from labelsmooth.compat.transformers import (
    LabelSmoother,
    apply_to,
    compute_loss_func,
    patch_trainer,
)


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
