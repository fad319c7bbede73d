"""Chat formats on the other side: recognised in a Jinja template by its marks, and written as one.

A template from a file is never run (a sandbox bounds neither time nor memory): what it does is known by name, or it is
refused. The ones written here say in their first line which format they are, and mark what is trained on.
"""

import json
import re
from typing import NamedTuple

from llmcore.tokenizer import SpecialTokens


class Dialect(NamedTuple):
    """How one of our chat formats looks in the template of a published model."""

    name: str
    marks: tuple[str, ...]
    """All of these stand in it."""
    foreign: tuple[str, ...] = ()
    """None of these does."""
    end_of_turn: str | None = None
    """The control token after each turn; none: the end of the document."""


# The first that matches: what is special comes before what is general.
DIALECTS = (
    Dialect(
        "qwen3", ("<|im_start|>", "loop.index0 > ns.last_query_index", "enable_thinking"), end_of_turn="<|im_end|>"
    ),
    Dialect(
        "qwen2.5",
        ("<|im_start|>", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
        ("last_query_index",),
        "<|im_end|>",
    ),
    Dialect("qwen2", ("<|im_start|>system\\nYou are a helpful assistant.<|im_end|>",), ("think",), "<|im_end|>"),
    Dialect("chatml", ("<|im_start|>", "<|im_end|>"), ("You are", "think", "trim", "strip("), "<|im_end|>"),
    Dialect("llama3.1", ("<|start_header_id|>", "<|eot_id|>", "Cutting Knowledge Date"), (), "<|eot_id|>"),
    Dialect("llama3", ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), ("You are", "think"), "<|eot_id|>"),
    Dialect("llama2", ("[INST]", "<<SYS>>", "[/INST]"), ("You are",)),
    Dialect("mistral", (" [INST] ", " [/INST]"), ("<<SYS>>", "[SYSTEM_PROMPT]")),
    Dialect("mistral-v3", ("[INST] ", "[/INST]", "loop.last"), (" [/INST]", "<<SYS>>", "[SYSTEM_PROMPT]")),
    Dialect("gemma", ("<start_of_turn>", "<end_of_turn>"), ("think",), "<end_of_turn>"),
)
OURS = re.compile(r"\A\{#- llmcore chat format: ([a-z0-9.-]+) -#\}")


def recognise(template: str) -> Dialect | None:
    """The format of a template, or None where no name of ours is known to equal it."""
    for dialect in DIALECTS:
        if all(mark in template for mark in dialect.marks) and not any(mark in template for mark in dialect.foreign):
            return dialect
    return None


def signed(template: str) -> str | None:
    """The format's name in a template that was written here."""
    found = OURS.match(template)
    return None if found is None else found[1]


def conventional(chat: str) -> Dialect:
    """What is usual for a format chosen by name."""
    return next((dialect for dialect in DIALECTS if dialect.name == chat), Dialect(chat, ()))


def write_template(special: SpecialTokens) -> str | None:
    """The template that renders as our format of this name does; None for a format that has none."""
    if special.chat not in TEMPLATES:
        return None
    body = re.sub(r"\n\s*", "", TEMPLATES[special.chat])
    begin = "" if special.bos is None else "{{- bos_token -}}"
    again = "''" if special.bos is None else "bos_token"
    body = body.replace("@BEGIN@", begin).replace("@AGAIN@", again)
    body = body.replace("@END@", json.dumps(special.end_of_turn, ensure_ascii=False))
    return f"{{#- llmcore chat format: {special.chat} -#}}\n{body}\n"


# Line breaks and the spaces after them are only for the reader: `write_template` takes them out.
MESSAGES = "{%- for message in messages -%}"
CHATML_LOOP = """
    {{- '<|im_start|>' + message['role'] + '\\n' -}}
    {%- if message['role'] == 'assistant' -%}
        {%- generation -%}{{- message['content'] + @END@ -}}{%- endgeneration -%}
    {%- else -%}
        {{- message['content'] + @END@ -}}
    {%- endif -%}
    {{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
CHATML = f"@BEGIN@{MESSAGES}{CHATML_LOOP}"


def chatml_with(system: str) -> str:
    """ChatML with a system message always there."""
    missing = "{%- if not messages or messages[0]['role'] != 'system' -%}"
    first = f"{{{{- '<|im_start|>system\\n{system}' + @END@ + '\\n' -}}}}"
    return f"@BEGIN@{missing}{first}{{%- endif -%}}{MESSAGES}{CHATML_LOOP}"


QWEN3 = """@BEGIN@
{%- set ns = namespace(last_query_index=-1) -%}
{%- for message in messages -%}
    {%- if message['role'] == 'user' -%}{%- set ns.last_query_index = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
    {{- '<|im_start|>' + message['role'] + '\\n' -}}
    {%- if message['role'] == 'assistant' -%}
        {%- set thought = '' -%}
        {%- set answer = message['content'].lstrip('\\n') -%}
        {%- if '</think>' in message['content'] -%}
            {%- set thought = message['content'].split('</think>')[0].split('<think>')[-1].strip('\\n') -%}
            {%- set answer = message['content'].split('</think>')[-1].lstrip('\\n') -%}
        {%- endif -%}
        {%- generation -%}
            {%- if loop.index0 > ns.last_query_index and (loop.last or thought) -%}
                {{- '<think>\\n' + thought + '\\n</think>\\n\\n' -}}
            {%- endif -%}
            {{- answer + @END@ -}}
        {%- endgeneration -%}
    {%- else -%}
        {{- message['content'] + @END@ -}}
    {%- endif -%}
    {{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
PLAIN = """@BEGIN@
{%- for message in messages -%}
    {%- if message['role'] == 'assistant' -%}
        {%- generation -%}{{- message['content'] + @END@ -}}{%- endgeneration -%}
    {%- else -%}
        {{- message['content'] -}}
    {%- endif -%}
    {{- '\\n' -}}
{%- endfor -%}
"""
LLAMA3_LOOP = """
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' -}}
    {%- if message['role'] == 'assistant' -%}
        {%- generation -%}{{- message['content'] | trim + @END@ -}}{%- endgeneration -%}
    {%- else -%}
        {{- message['content'] | trim + @END@ -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}
"""
LLAMA3 = f"@BEGIN@{MESSAGES}{LLAMA3_LOOP}"
LLAMA31 = f"""@BEGIN@
{{%- set system = '' -%}}
{{%- set rest = messages -%}}
{{%- if messages and messages[0]['role'] == 'system' -%}}
    {{%- set system = messages[0]['content'] | trim -%}}
    {{%- set rest = messages[1:] -%}}
{{%- endif -%}}
{{{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' -}}}}
{{{{- 'Cutting Knowledge Date: December 2023\\nToday Date: 26 Jul 2024\\n\\n' + system + @END@ -}}}}
{{%- for message in rest -%}}{LLAMA3_LOOP}"""
SYSTEM_IN_QUESTION = """
{%- set ns = namespace(system='', chosen=-1) -%}
{%- set rest = messages -%}
{%- if messages and messages[0]['role'] == 'system' -%}
    {%- set ns.system = @BEFORE@ + messages[0]['content'] + @AFTER@ -%}
    {%- set rest = messages[1:] -%}
    {%- for message in rest -%}
        {%- if message['role'] == 'user' and @CHOSEN@ -%}{%- set ns.chosen = loop.index0 -%}{%- endif -%}
    {%- endfor -%}
{%- endif -%}
{%- for message in rest -%}
    {%- set content = ns.system + message['content'] if loop.index0 == ns.chosen else message['content'] -%}
"""


def system_in_question(before: str, after: str, *, last: bool = False) -> str:
    """The beginning of a template whose system text opens the first (or last) question; `content` is the text."""
    loop = SYSTEM_IN_QUESTION.replace("@CHOSEN@", "true" if last else "ns.chosen < 0")
    return loop.replace("@BEFORE@", f"'{before}'").replace("@AFTER@", f"'{after}'")


LLAMA2 = (
    "@BEGIN@"
    + system_in_question("<<SYS>>\\n", "\\n<</SYS>>\\n\\n")
    + """
    {%- if message['role'] == 'assistant' -%}
        {%- generation -%}{{- ' ' + content | trim + ' ' + @END@ -}}{%- endgeneration -%}
    {%- else -%}
        {%- if not loop.first -%}{{- @AGAIN@ -}}{%- endif -%}
        {{- '[INST] ' + content | trim + ' [/INST]' -}}
    {%- endif -%}
{%- endfor -%}
"""
)
MISTRAL = (
    "@BEGIN@"
    + system_in_question("", "\\n\\n")
    + """
    {%- if message['role'] == 'assistant' -%}
        {%- generation -%}{{- ' ' + content + @END@ -}}{%- endgeneration -%}
    {%- else -%}
        {{- ' [INST] ' + content + ' [/INST]' -}}
    {%- endif -%}
{%- endfor -%}
"""
)
MISTRAL_V3 = (
    "@BEGIN@"
    + system_in_question("", "\\n\\n", last=True)
    + """
    {%- if message['role'] == 'assistant' -%}
        {%- generation -%}{{- ' ' + content | trim + @END@ -}}{%- endgeneration -%}
    {%- else -%}
        {{- '[INST] ' + content + '[/INST]' -}}
    {%- endif -%}
{%- endfor -%}
"""
)
GEMMA = (
    "@BEGIN@"
    + system_in_question("", "\\n\\n")
    + """
    {%- if message['role'] == 'assistant' -%}
        {{- '<start_of_turn>model\\n' -}}
        {%- generation -%}{{- content | trim + @END@ -}}{%- endgeneration -%}
    {%- else -%}
        {{- '<start_of_turn>' + message['role'] + '\\n' + content | trim + @END@ -}}
    {%- endif -%}
    {{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}
"""
)
TEMPLATES = {
    "chatml": CHATML,
    "plain": PLAIN,
    "qwen2": chatml_with("You are a helpful assistant."),
    "qwen2.5": chatml_with("You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    "qwen3": QWEN3,
    "llama2": LLAMA2,
    "llama3": LLAMA3,
    "llama3.1": LLAMA31,
    "mistral": MISTRAL,
    "mistral-v3": MISTRAL_V3,
    "gemma": GEMMA,
}
