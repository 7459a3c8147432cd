#!/usr/bin/env python3
"""Writes tests/golden/chat_families.json: conversations in the chat formats of well-known families of models, as
transformers tokenizes them, with the mask of what the assistant says.

The templates are written from the documentation of the formats; none is a model's own text. A template exists in two
forms: as models carry it, and with {% generation %} blocks around what is learned, from which transformers makes the
mask (`return_assistant_tokens_mask`). « and » stand for the ends of a block. A family whose own template has blocks is
marked in both forms. Where a template refuses a conversation the fixture holds null.

All families share one tokenizer: a token a byte, and everybody's special tokens.
"""

import datetime
import json
from pathlib import Path

import transformers.utils.chat_template_utils as chat
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

TIME = 1_721_901_600  # 2024-07-25, 10:00 UTC

CHATML_END = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"


def chatml(preface):
    """ChatML; `preface` is the system text of conversations that have none."""
    first = ""
    if preface:
        first = ("{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\n" + preface
                 + "<|im_end|>\\n' }}{% endif %}")
    return (first + "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
            "{% if m.role == 'assistant' %}«{{ m.content + '<|im_end|>' }}»{% else %}{{ m.content + '<|im_end|>' }}{% endif %}"
            "{{ '\\n' }}{% endfor %}" + CHATML_END)


def llama3(preface):
    """Llama 3's headers; `preface` is what stands before the turns."""
    return preface + """\
{%- for m in turns %}
{{- '<|start_header_id|>' + ('ipython' if m.role == 'tool' else m.role) + '<|end_header_id|>\\n\\n' }}
{%- if m.role == 'assistant' %}
{%- if m.tool_calls is defined %}
{%- if m.tool_calls|length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}
{%- set call = m.tool_calls[0].function -%}
«{{- '{"name": "' + call.name + '", "parameters": ' + call.arguments|tojson + '}<|eot_id|>' -}}»
{%- else -%}
«{{- m.content|trim + '<|eot_id|>' -}}»
{%- endif %}
{%- elif m.role == 'tool' %}
{{- (m.content if m.content is string else m.content|tojson) + '<|eot_id|>' }}
{%- else %}
{{- m.content|trim + '<|eot_id|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
"""


def mistral(space, tools):
    """Mistral's brackets. `space` stands before an answer; v2 and later know tools."""
    calls = """\
{%- elif m.tool_calls is defined -%}
«{{- '[TOOL_CALLS] [' -}}{%- for call in m.tool_calls -%}{{- call.function|tojson -}}{{- ']' if loop.last else ', ' -}}{%- endfor -%}{{- eos_token -}}»
{%- elif m.role == 'tool' -%}
{{- '[TOOL_RESULTS] ' + {'content': m.content}|tojson + '[/TOOL_RESULTS]' -}}
""" if tools else ""
    offered = """\
{%- if tools is not none and loop.index0 == ns.last %}{{- '[AVAILABLE_TOOLS] ' + tools|tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}
""" if tools else ""
    system = """\
{%- if preface is defined and loop.index0 == ns.last %}{{- '[INST] ' + preface + '\\n\\n' + m.content + '[/INST]' }}
{%- else %}{{- '[INST] ' + m.content + '[/INST]' }}{% endif %}
""" if tools else "{{- '[INST] ' + m.content + ' [/INST]' }}\n"
    first = """\
{%- if messages[0].role == 'system' %}{% set preface = messages[0].content %}{% set turns = messages[1:] %}{% else %}{% set turns = messages %}{% endif %}
""" if tools else "{%- set turns = messages %}\n"
    return first + """\
{%- set ns = namespace(last=0, users=0) %}
{%- for m in turns %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{{- bos_token }}
{%- for m in turns %}
{%- if m.role == 'user' or (m.role == 'assistant' and m.tool_calls is not defined) %}
{%- if (m.role == 'user') != (ns.users % 2 == 0) %}{{ raise_exception('roles have to alternate') }}{% endif %}
{%- set ns.users = ns.users + 1 %}
{%- endif %}
{%- if m.role == 'user' %}
""" + offered + system + calls + """\
{%- elif m.role == 'assistant' -%}
«{{- '""" + space + """' + m.content + eos_token -}}»
{%- else %}{{ raise_exception('unknown role ' + m.role) }}
{%- endif %}
{%- endfor %}
"""


def qwen(preface, answer, prompt):
    """Qwen's ChatML with tools in XML; `answer` writes what is before an answer's text, `prompt` asks for one."""
    return """\
{%- set ns = namespace(last=messages|length - 1, open=true) %}
{%- for m in messages[::-1] %}
{%- set at = (messages|length - 1) - loop.index0 %}
{%- if ns.open and m.role == 'user' %}{% set ns.open = false %}{% set ns.last = at %}{% endif %}
{%- endfor %}
{%- if tools %}
{{- '<|im_start|>system\\n' + (messages[0].content + '\\n\\n' if messages[0].role == 'system' else '""" + preface + """') }}
{{- '# Tools\\n\\n<tools>' }}{% for tool in tools %}{{ '\\n' + tool|tojson }}{% endfor %}{{ '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- elif '""" + preface + """' %}
{{- '<|im_start|>system\\n""" + preface + """<|im_end|>\\n' }}
{%- endif %}
{%- for m in messages %}
{%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- elif m.role == 'assistant' %}
{{- '<|im_start|>assistant\\n' -}}
«""" + answer + """
{%- if m.tool_calls %}{% for call in m.tool_calls %}
{%- set call = call.function if call.function else call %}
{{- '\\n' if not loop.first or m.content }}
{{- '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' + call.arguments|tojson + '}\\n</tool_call>' }}
{%- endfor %}{% endif %}
{{- '<|im_end|>' -}}»
{{- '\\n' }}
{%- elif m.role == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{% endif %}
{{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{% endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}""" + prompt + """{% endif %}
"""


# The thoughts of a turn, in a column of their own or in its text, and the text without them.
SPLIT_THOUGHTS = """\
{%- set text = m.content if m.content is string else '' %}{% set thought = '' %}
{%- if m.reasoning_content is string %}{% set thought = m.reasoning_content %}
{%- elif '</think>' in text %}
{%- set thought = text.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
{%- set text = text.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}"""

# Each family: the names of its special tokens, and its template.
FAMILIES = {
    "chatml": ({}, chatml("")),
    "llama2": ({"bos_token": "<s>", "eos_token": "</s>"}, """\
{%- if messages[0].role == 'system' %}{% set preface = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' %}{% set turns = messages[1:] %}
{%- else %}{% set preface = '' %}{% set turns = messages %}{% endif %}
{%- for m in turns %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles have to alternate') }}{% endif %}
{%- if m.role == 'user' %}
{{- bos_token + '[INST] ' + ((preface if loop.first else '') + m.content).strip() + ' [/INST]' }}
{%- else -%}
«{{- ' ' + m.content.strip() + ' ' + eos_token -}}»
{%- endif %}
{%- endfor %}
"""),
    "llama3": ({"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
               llama3("{%- set turns = messages %}{{- bos_token }}\n")),
    "llama3.2": ({"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}, llama3("""\
{{- bos_token }}
{%- if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}
{%- if messages[0].role == 'system' %}{% set preface = messages[0].content|trim %}{% set turns = messages[1:] %}
{%- else %}{% set preface = '' %}{% set turns = messages %}{% endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
{%- if tools is not none %}{{- 'Environment: ipython\\n' }}{% endif %}
{{- 'Today Date: ' + date_string + '\\n\\n' + preface + '<|eot_id|>' }}
{%- if tools is not none %}
{%- if turns|length == 0 %}{{ raise_exception('no turn of a user for the tools') }}{% endif %}
{{- '<|start_header_id|>user<|end_header_id|>\\n\\nFunctions:\\n\\n' }}
{%- for tool in tools %}{{- tool|tojson(indent=4) + '\\n\\n' }}{% endfor %}
{{- turns[0].content|trim + '<|eot_id|>' }}
{%- set turns = turns[1:] %}
{%- endif %}
""")),
    "mistral-v1": ({"bos_token": "<s>", "eos_token": "</s>"}, mistral(" ", False)),
    "mistral-v2": ({"bos_token": "<s>", "eos_token": "</s>"}, mistral(" ", True)),
    "mistral-v3": ({"bos_token": "<s>", "eos_token": "</s>"}, mistral("", True)),
    "qwen2.5": ({"eos_token": "<|im_end|>"}, qwen("You are a helper.\\n\\n",
                                                 "{{- m.content if m.content else '' }}", "")),
    "qwen3": ({"eos_token": "<|im_end|>"}, qwen("", SPLIT_THOUGHTS + """\
{%- if loop.index0 > ns.last and (loop.last or thought) %}{{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + text.lstrip('\\n') }}
{%- else %}{{- text }}{% endif %}""", """
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}""")),
    "gemma": ({"bos_token": "<bos>", "eos_token": "<eos>"}, """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}
{%- for m in messages %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles have to alternate') }}{% endif %}
{%- if m.role == 'assistant' %}
{{- '<start_of_turn>model\\n' -}}«{{- m.content|trim + '<end_of_turn>' -}}»{{- '\\n' }}
{%- else %}
{{- '<start_of_turn>' + m.role + '\\n' + m.content|trim + '<end_of_turn>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{% endif %}
"""),
    "gemma3": ({"bos_token": "<bos>", "eos_token": "<eos>"}, """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}
{%- set preface = (messages[0].content if messages[0].content is string else messages[0].content[0].text) + '\\n\\n' %}{% set turns = messages[1:] %}
{%- else %}{% set preface = '' %}{% set turns = messages %}{% endif %}
{%- for m in turns %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles have to alternate') }}{% endif %}
{%- if m.role == 'assistant' %}
{{- '<start_of_turn>model\\n' -}}«{{- m.content|trim + '<end_of_turn>' -}}»{{- '\\n' }}
{%- else %}
{{- '<start_of_turn>' + m.role + '\\n' + (preface if loop.first else '') + m.content|trim + '<end_of_turn>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{% endif %}
"""),
    "phi3": ({"eos_token": "<|endoftext|>"}, """\
{% for m in messages %}{{ '<|' + m.role + '|>\\n' }}{% if m.role == 'assistant' %}«{{ m.content + '<|end|>' }}»{% else %}{{ m.content + '<|end|>' }}{% endif %}{{ '\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"""),
    "smollm2": ({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}, chatml("You are a small helper.")),
    # Its own template has blocks.
    "smollm3": ({"eos_token": "<|im_end|>"}, """\
{%- if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}
{%- set mode = '/think' if enable_thinking else '/no_think' %}
{%- if messages[0].role == 'system' %}{% set preface = messages[0].content.replace('/no_think', '').rstrip() %}{% set turns = messages[1:] %}
{%- else %}{% set preface = '' %}{% set turns = messages %}{% endif %}
{{- '<|im_start|>system\\n## Metadata\\n\\nToday Date: ' + strftime_now('%d %B %Y') + '\\nReasoning Mode: ' + mode + '\\n\\n' }}
{{- '## Custom Instructions\\n\\n' + (preface if preface else 'You are a helper.') + '\\n\\n' }}
{%- if tools %}{{- '### Tools\\n\\n' }}{% for tool in tools %}{{- tool|string + '\\n' }}{% endfor %}{% endif %}
{{- '<|im_end|>\\n' }}
{%- for m in turns %}
{%- set text = m.content if m.content is string else '' %}
{%- if m.role == 'assistant' %}
{% generation %}
{%- if mode == '/think' %}
{{- '<|im_start|>assistant\\n' + text.lstrip('\\n') + '<|im_end|>\\n' }}
{%- else %}
{{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n' + text.lstrip('\\n') + '<|im_end|>\\n' }}
{%- endif %}
{% endgeneration %}
{%- elif m.role == 'tool' %}
{{- '<|im_start|>user\\n' + text + '<|im_end|>\\n' }}
{%- else %}
{{- '<|im_start|>' + m.role + '\\n' + text + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' + ('' if enable_thinking else '<think>\\n\\n</think>\\n') }}
{%- endif %}
"""),
    "r1": ({"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"}, """\
{%- set ns = namespace(preface='', tool=false) %}
{%- for m in messages %}{% if m.role == 'system' %}{% set ns.preface = m.content %}{% endif %}{% endfor %}
{{- bos_token + ns.preface }}
{%- for m in messages %}
{%- if m.role == 'user' %}{% set ns.tool = false %}{{- '<｜User｜>' + m.content }}
{%- elif m.role == 'assistant' and (m.content is not defined or m.content is none) %}
{{- '<｜Assistant｜>' -}}«{{- '<｜tool▁calls▁begin｜>' }}{% for call in m.tool_calls %}{{- '<｜tool▁call▁begin｜>' + call.type + '<｜tool▁sep｜>' + call.function.name + '\\n' + call.function.arguments|tojson + '<｜tool▁call▁end｜>' }}{% endfor %}{{- '<｜tool▁calls▁end｜>' + eos_token -}}»
{%- elif m.role == 'assistant' %}
{%- set text = m.content.split('</think>')[-1] if '</think>' in m.content else m.content %}
{%- if ns.tool -%}
{{- '<｜tool▁outputs▁end｜>' -}}«{{- text + eos_token -}}»
{%- else -%}
{{- '<｜Assistant｜>' -}}«{{- text + eos_token -}}»
{%- endif %}
{%- set ns.tool = false %}
{%- elif m.role == 'tool' %}
{{- ('' if ns.tool else '<｜tool▁outputs▁begin｜>') + '<｜tool▁output▁begin｜>' + m.content + '<｜tool▁output▁end｜>' }}
{%- set ns.tool = true %}
{%- endif %}
{%- endfor %}
{%- if ns.tool %}{{- '<｜tool▁outputs▁end｜>' }}{% endif %}
{%- if add_generation_prompt and not ns.tool %}{{- '<｜Assistant｜><think>\\n' }}{% endif %}
"""),
    "zephyr": ({"bos_token": "<s>", "eos_token": "</s>"}, """\
{% for m in messages %}
{{ '<|' + m.role + '|>' }}
{% if m.role == 'assistant' %}
«{{ m.content + eos_token }}»{{ '' }}
{% else %}
{{ m.content + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""),
    "granite": ({"bos_token": "<|end_of_text|>", "eos_token": "<|end_of_text|>"}, """\
{%- if messages[0].role == 'system' %}{% set preface = messages[0].content %}{% set turns = messages[1:] %}
{%- else %}{% set preface = 'Today Date: ' + strftime_now('%B %d, %Y') + '.\\nYou are a helper.' %}{% set turns = messages %}{% endif %}
{{- '<|start_of_role|>system<|end_of_role|>' + preface + '<|end_of_text|>\\n' }}
{%- if tools %}{{- '<|start_of_role|>tools<|end_of_role|>' + tools|tojson(indent=4) + '<|end_of_text|>\\n' }}{% endif %}
{%- for m in turns %}
{%- if m.role == 'user' %}
{{- '<|start_of_role|>user<|end_of_role|>' + m.content + '<|end_of_text|>\\n' }}
{%- elif m.role == 'tool' %}
{{- '<|start_of_role|>tool_response<|end_of_role|>' + m.content + '<|end_of_text|>\\n' }}
{%- elif m.role == 'assistant' %}
{{- '<|start_of_role|>assistant<|end_of_role|>' -}}
«{%- if m.tool_calls %}{{- '<|tool_call|>' + m.tool_calls|tojson }}{% endif %}{{- (m.content or '') + '<|end_of_text|>' -}}»{{- '\\n' }}
{%- endif %}
{%- if loop.last and add_generation_prompt %}{{- '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}
{%- endfor %}
"""),
    "command-r": ({"bos_token": "<BOS_TOKEN>", "eos_token": "<|END_OF_TURN_TOKEN|>"}, """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}{% set turns = messages[1:] %}{% set preface = messages[0].content %}
{%- else %}{% set turns = messages %}{% set preface = '' %}{% endif %}
{%- if preface %}{{- '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>' + preface + '<|END_OF_TURN_TOKEN|>' }}{% endif %}
{%- for m in turns %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles have to alternate') }}{% endif %}
{%- if m.role == 'user' %}
{{- '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + m.content.strip() + '<|END_OF_TURN_TOKEN|>' }}
{%- elif m.role == 'assistant' %}
{{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' -}}«{{- m.content.strip() + '<|END_OF_TURN_TOKEN|>' -}}»
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}
"""),
}

# Texts that a template writes and its tokenizer has as one token, beside the ones named above.
TOKENS = """
<|im_start|> <|start_header_id|> <|end_header_id|> <|end|> <|user|> <|assistant|> <|system|> <start_of_turn> <end_of_turn>
<｜User｜> <｜Assistant｜> <｜tool▁calls▁begin｜> <｜tool▁call▁begin｜> <｜tool▁sep｜> <｜tool▁call▁end｜> <｜tool▁calls▁end｜>
<｜tool▁outputs▁begin｜> <｜tool▁outputs▁end｜> <｜tool▁output▁begin｜> <｜tool▁output▁end｜> <|start_of_role|> <|end_of_role|>
<|tool_call|> <|START_OF_TURN_TOKEN|> <|USER_TOKEN|> <|CHATBOT_TOKEN|> <|SYSTEM_TOKEN|>
""".split()
# The same for tokens that count as text.
WORDS = "<think> </think> <tool_call> </tool_call> <tool_response> </tool_response> [INST] [/INST]".split()

TOOLS = [{"type": "function", "function": {
    "name": "weather", "description": "The weather of a town.",
    "parameters": {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]}}}]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"town": "Köln"}}}


def said(*turns):
    return [dict(zip(("role", "content"), turn)) for turn in turns]


ASKED, ANSWERED = ("user", "What is 2 + 2?"), ("assistant", "4, I think.")
AGAIN, CLOSED = ("user", "And l'été?\nIn one word."), ("assistant", "Summer.\n\nNo more.")
SYSTEM = ("system", "Be brief & \"exact\".")

CONVERSATIONS = {
    "one": dict(messages=said(ASKED, ANSWERED)),
    "two": dict(messages=said(ASKED, ANSWERED, AGAIN, CLOSED)),
    "system": dict(messages=said(SYSTEM, ASKED, ANSWERED, AGAIN, CLOSED)),
    "spaces": dict(messages=said(("user", "  a \n"), ("assistant", " b \n"), AGAIN, ("assistant", "c"))),
    "tags": dict(messages=said(ASKED, ("assistant", "<think>\n2 + 2\n</think>\n\n4"), AGAIN,
                               ("assistant", "<think>\nété\n</think>\n\nSummer."))),
    "thoughts": dict(messages=[*said(ASKED), {"role": "assistant", "content": "4", "reasoning_content": "2 + 2"},
                               *said(AGAIN), {"role": "assistant", "content": "Summer.", "reasoning_content": "été"}]),
    "quick": dict(messages=said(ASKED, ANSWERED), variables={"enable_thinking": False}),
    "tools": dict(tools=TOOLS, messages=[
        *said(SYSTEM, ("user", "The weather in Köln?")),
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "name": "weather", "content": "{\"rain\": true}"}, *said(("assistant", "It rains."))]),
    "called": dict(tools=TOOLS, messages=[
        *said(("user", "The weather in Köln?")), {"role": "assistant", "content": "", "tool_calls": [CALL]}]),
    "asked": dict(messages=said(SYSTEM, ASKED, ANSWERED, AGAIN)),
    "hopeful": dict(messages=said(ASKED), variables={"enable_thinking": False}),
}


class FixedTime(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(TIME, datetime.timezone.utc)


def tokenizer():
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    named = sorted({token for special, _ in FAMILIES.values() for token in special.values()})
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in [*named, *TOKENS]])
    made.add_tokens([AddedToken(word, special=False, normalized=False) for word in WORDS])
    return made


def runs(mask):
    """The places of the ones, each as its start and end."""
    padded = [0, *mask, 0]
    edges = [i for i, (a, b) in enumerate(zip(padded, padded[1:])) if a != b]
    return [list(pair) for pair in zip(edges[::2], edges[1::2])]


def case(made, family, conversation):
    special, template = FAMILIES[family]
    fast = PreTrainedTokenizerFast(tokenizer_object=made, **special)
    found = CONVERSATIONS[conversation]
    ask = found["messages"][-1]["role"] == "user"
    marked = template.replace("«", "{% generation %}").replace("»", "{% endgeneration %}")
    plain = template.replace("«", "").replace("»", "")
    arguments = dict(tools=found.get("tools"), add_generation_prompt=ask, **found.get("variables", {}))
    try:
        text = fast.apply_chat_template(found["messages"], chat_template=plain, tokenize=False, **arguments)
        made = fast.apply_chat_template(found["messages"], chat_template=marked, tokenize=True, return_dict=True,
                                        return_assistant_tokens_mask=True, **arguments)
    except Exception as refused:
        print(f"{family} refuses {conversation}: {type(refused).__name__}: {str(refused)[:60]}")
        return None
    ids = made["input_ids"]
    assert ids == fast(text, add_special_tokens=False)["input_ids"], (family, conversation)
    learned = [] if ask else runs(made["assistant_masks"])
    if learned and "«" in template:
        # What the generation prompt writes is given, and not said: the end of thoughts, for example.
        arguments["add_generation_prompt"] = True
        given = fast.apply_chat_template(found["messages"][:-1], chat_template=plain, tokenize=True, return_dict=True,
                                         **arguments)["input_ids"]
        if ids[:len(given)] == given and learned[-1][0] < len(given) < learned[-1][1]:
            learned[-1][0] = len(given)
    return {"text": text, "tokens": len(ids), "learned": learned}


def main():
    chat.datetime = FixedTime
    made = tokenizer()
    families = {
        name: {"special": special, "template": template.replace("«", "").replace("»", ""),
               "cases": {conversation: case(made, name, conversation) for conversation in CONVERSATIONS}}
        for name, (special, template) in FAMILIES.items()
    }
    fixture = {"time": TIME, "tokenizer": json.loads(made.to_str()), "conversations": CONVERSATIONS, "families": families}
    path = Path(__file__).parents[2] / "tests" / "golden" / "chat_families.json"
    path.write_text(json.dumps(fixture, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
