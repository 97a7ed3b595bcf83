"""Small models of Hugging Face, of each kind of head, and a batch for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

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
