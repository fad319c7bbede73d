"""The README.md of an export: what the model is, where it came from, and how to load it."""

from llmcore.checkpoint import Checkpoint
from llmcore.huggingface.family import Family
from llmcore.manifest import Manifest
from llmcore.manifest import family as ancestors
from llmcore.model.size import count_parameters

POLICY_USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH")
model = AutoModelForCausalLM.from_pretrained("PATH")
{prompt}
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0]))
```"""
CHAT_PROMPT = """messages = [{"role": "user", "content": "Hello"}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")"""
TEXT_PROMPT = 'inputs = tokenizer("Once upon a time", return_tensors="pt")'
REWARD_USE = """```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH")
model = AutoModelForSequenceClassification.from_pretrained("PATH")
messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi!"}]
inputs = tokenizer.apply_chat_template(messages, return_dict=True, return_tensors="pt")
print(model(**inputs).logits)  # higher is better
```

The score stands at the last token that is not padding; a text must not end in the padding token."""

ADAPTER_USE = """```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("BASE")
model = PeftModel.from_pretrained(model, "PATH")
```

`BASE` is the export of the model below (`llmcore export hf`), which has the tokenizer too."""


def write_card(source: Checkpoint, family: Family) -> str:
    """The model card."""
    model, special = source.model, source.tokenizer.special
    reward = model.config.head == "scalar"
    prompt = TEXT_PROMPT if special.chat in ("plain", "none") else CHAT_PROMPT
    kind, task = ("reward model", "text-classification") if reward else ("language model", "text-generation")
    return "\n\n".join(
        [
            f"---\nlibrary_name: transformers\npipeline_tag: {task}\n---",
            f"# {kind.capitalize()}, exported by llmcore",
            f"A {kind} of {count_parameters(model):,} parameters ({model.config.depth} blocks, width "
            f"{model.config.width}, context {model.config.context}, vocabulary {model.config.vocab_size:,}), as "
            f"`{family.architecture(model.config)}`; chat format `{special.chat}`.",
            "## Use\n\n" + (REWARD_USE if reward else POLICY_USE.replace("{prompt}", prompt)),
            "## Where it came from\n\n" + history(source.manifest),
            "`manifest.json` holds the whole family tree with settings, metrics and hashes (`llmcore lineage`).\n",
        ]
    )


def write_adapter_card(source: Checkpoint, family: Family, *, rank: int) -> str:
    """The card of an adapter."""
    return "\n\n".join(
        [
            "---\nlibrary_name: peft\npipeline_tag: text-generation\n---",
            "# LoRA adapter, exported by llmcore",
            f"Rank {rank}, for a `{family.architecture(source.model.config)}` of {count_parameters(source.model):,} "
            "parameters with the adapter.",
            "## Use\n\n" + ADAPTER_USE,
            "## Where it came from\n\n" + history(source.manifest),
            "`manifest.json` holds the whole family tree with settings, metrics and hashes (`llmcore lineage`).\n",
        ]
    )


def history(manifest: Manifest) -> str:
    """The ancestors as a nested list."""
    lines = []
    for depth, role, one in ancestors(manifest):
        made = f", made by `{one.made_by}`" if one.made_by else ""
        name = role or one.kind
        lines.append(f"{'  ' * depth}- {name}: {one.kind} `{one.id}`{made}")
    return "\n".join(lines)
