"""Mixture of experts: a feed-forward that routes tokens; nothing is imported here.

config   MoE: the settings, found by the core as feed-forward kind "moe"
router   which experts serve a token; load-balancing loss and z-loss
layer    tokens sorted by expert once, one product for all experts, and back
usage    which share of the tokens each expert serves
huggingface  Mixtral and Qwen 3 MoE, offered to `llmcore import hf` and `llmcore export hf`
cli      llmmoe usage
"""
