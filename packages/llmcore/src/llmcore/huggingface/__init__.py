"""Hugging Face folders, read and written without its libraries; nothing is imported here.

family     Family: one `model_type`, both ways; which one a model of ours fits
settings   Settings: a config.json, read key by key with transformers' defaults
rope       rotary positions in either spelling
keys       Rule: which of their tensors are which of ours
decoder    what Llama and its relatives share
llama      Llama 2 and 3, Mistral
qwen       Qwen 2, Qwen 3
olmo       OLMo 2
gemma      Gemma
gpt2       GPT-2
tensors    safetensors files, one or several with an index
vocabulary tokenizer.json and the roles of its control tokens
dialects   chat formats: recognised in their templates, written as templates
reading    `llmcore import hf`
writing    `llmcore export hf`
peft       the same of an adapter
card       the exported README.md
cli        the commands

A family of an outside package joins by the entry-point group `llmcore.huggingface`, named by its `model_type`.
"""
