"""Run by an interpreter that has peft: the logits of an exported adapter, and of the model below it."""

import sys

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

root = sys.argv[1]
base = AutoModelForCausalLM.from_pretrained(root + "/hf", dtype=torch.float64)
ids = load_file(root + "/ids.safetensors")["ids"]
model = PeftModel.from_pretrained(base, root + "/peft").double().eval()
with torch.no_grad():
    said = model(ids).logits
    with model.disable_adapter():
        below = model(ids).logits
save_file({"said": said, "below": below}, root + "/said.safetensors")
