"""Trains a small Llama by Hugging Face's Trainer three times: with its own label smoothing, with
labelsmooth's in its place, and with labelsmooth's in the model, where the head makes no logits.

    pip install rich transformers accelerate

The text is the source of Python's standard library, the model begins with random weights. A step
accumulates two batches. All trainings start from the same seed and see the same batches, each in a
process of its own, a step of each in turn: the losses that the Trainer logs must agree, and each
peak of memory is one training's own. Exit status 1 if a curve disagrees with the first.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from typing import Any

import torch
from data import read_tokens
from side_by_side import compare, peak_bytes, show, train_in_turns, training_options
from torch import Tensor

from labelsmooth.compat.transformers import apply_to, patch_trainer

try:
    importlib.import_module("accelerate")  # which the Trainer needs, and asks for late
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )
except ImportError as error:
    sys.exit(f"{error}; this example needs: pip install rich transformers accelerate")

SMOOTHING = 0.1
STOCK, PATCHED, FUSED = WAYS = "the Trainer's own", "patch_trainer()", "apply_to(fused_head=True)"


class Turns(TrainerCallback):
    """A step for every message, answered by the loss that is logged and the step's time."""

    def __init__(self, parent: Connection) -> None:
        self.parent = parent
        self.start = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.parent.recv()
        self.start = time.perf_counter()

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        if "loss" in logs:  # not so in the end
            self.parent.send((logs["loss"], time.perf_counter() - self.start))


def train(
    parent: Connection, name: str, tokens: Tensor, vocabulary: int, args: argparse.Namespace
) -> None:
    """One training, in its own process."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=args.width,
        intermediate_size=2 * args.width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    if name == PATCHED:
        patch_trainer()
    if name == FUSED:
        apply_to(model, label_smoothing=SMOOTHING, fused_head=True)
    pieces = tokens[: len(tokens) // args.length * args.length].view(-1, args.length)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            TrainingArguments(
                folder,
                # The Trainer's smoothing takes the labels away from the model.
                label_smoothing_factor=0.0 if name == FUSED else SMOOTHING,
                max_steps=args.steps,
                per_device_train_batch_size=args.batch,
                gradient_accumulation_steps=2,
                learning_rate=args.learning_rate,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
                seed=args.seed,
            ),
            train_dataset=[{"input_ids": piece, "labels": piece} for piece in pieces],
            callbacks=[Turns(parent)],
        )
        before = peak_bytes()
        trainer.train()
    parent.recv()
    parent.send((before, peak_bytes(), None))


def arguments() -> argparse.Namespace:
    parser = training_options(__doc__, learning_rate=2e-3)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--batch", type=int, default=8, help="pieces of text, twice in a step")
    parser.add_argument("--length", type=int, default=128, help="words of a piece")
    parser.add_argument("--modules", type=int, help="to read; if not given, all")
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--width", type=int, default=64)
    return parser.parse_args()


def main() -> int:
    args = arguments()
    vocabulary = args.vocabulary
    tokens = read_tokens(vocabulary, args.modules)
    tokens = tokens[: 4 * args.steps * args.batch * args.length]  # twice as many as are seen
    rows = args.batch * args.length
    size = rows * vocabulary * 4 / 2**20
    print(f"logits of a batch: {rows:,} x {vocabulary:,}, {size:.0f} MiB; two batches a step")
    runs = train_in_turns(train, WAYS, args.steps, tokens, vocabulary, args)
    show(runs)
    return 0 if compare(runs) else 1


if __name__ == "__main__":
    sys.exit(main())
