#!/usr/bin/env python3
"""Writes tests/golden/chat_templates.json: conversations as transformers' own apply_chat_template renders them.

The templates are written for this purpose and have the features of those that models carry (ChatML, Llama 2,
Llama 3, Mistral, Zephyr, and what else Jinja offers), not their text. Where a template refuses a conversation the
fixture holds null; where it has generation blocks, their places in characters are kept too.
"""

import datetime
import json
from pathlib import Path

import jinja2
import transformers.utils.chat_template_utils as chat

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
TIME = 1_721_901_600  # 2024-07-25, 10:00 UTC

TEMPLATES = {
    "chatml": """\
{%- for turn in messages -%}
    {%- if loop.first and turn.role != 'system' -%}
        {{- '<|im_start|>system\\nBe of help.<|im_end|>\\n' -}}
    {%- endif -%}
    {{- '<|im_start|>' ~ turn['role'] ~ '\\n' ~ turn['content'] ~ '<|im_end|>' ~ '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
""",
    "chatml_lines": """\
{% for turn in messages %}
<|im_start|>{{ turn.role }}
{{ turn.content | trim }}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
""",
    "chatml_thinking": """\
{%- set ns = namespace(last=messages|length - 1, asked=false) -%}
{%- for turn in messages[::-1] -%}
    {%- set at = (messages|length - 1) - loop.index0 -%}
    {%- if not ns.asked and turn.role == "user" and not (turn.content.startswith('<reply>') and turn.content.endswith('</reply>')) -%}
        {%- set ns.asked = true -%}{%- set ns.last = at -%}
    {%- endif -%}
{%- endfor -%}
{%- for turn in messages -%}
    {%- set text = turn.content if turn.content is string else '' -%}
    {%- set thought = '' -%}
    {%- if turn.role == "assistant" -%}
        {%- if turn.reasoning_content is defined and turn.reasoning_content is not none -%}
            {%- set thought = turn.reasoning_content -%}
        {%- elif '</think>' in text -%}
            {%- set thought = text.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') -%}
            {%- set text = text.split('</think>')[-1].lstrip('\\n') -%}
        {%- endif -%}
    {%- endif -%}
    {{- '<|im_start|>' + turn.role + '\\n' -}}
    {%- if thought and loop.index0 > ns.last -%}{{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' -}}{%- endif -%}
    {{- text + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
    {%- if enable_thinking is defined and enable_thinking is false -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}
{%- endif -%}
""",
    "llama2": """\
{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}{% set preface = messages[0]['content'] %}
{%- else %}{% set turns = messages %}{% set preface = false %}{% endif %}
{%- for turn in turns %}
    {%- if (turn['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('user and assistant have to take turns') }}
    {%- endif %}
    {%- if loop.index0 == 0 and preface != false %}
        {%- set text = '<<SYS>>\\n' + preface + '\\n<</SYS>>\\n\\n' + turn['content'] %}
    {%- else %}
        {%- set text = turn['content'] %}
    {%- endif %}
    {%- if turn['role'] == 'user' %}
        {{- bos_token + '[INST] ' + text.strip() + ' [/INST]' }}
    {%- elif turn['role'] == 'assistant' %}
        {{- ' ' + text.strip() + ' ' + eos_token }}
    {%- endif %}
{%- endfor %}
""",
    "llama3": """\
{{- bos_token }}
{%- if not day is defined %}{%- if strftime_now is defined %}{%- set day = strftime_now("%d %b %Y") %}{%- else %}{%- set day = "1 Jan 2000" %}{%- endif %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set preface = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set preface = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nDay: " + day + "\\n\\n" }}
{{- preface + "<|eot_id|>" }}
{%- if tools is not none %}{{- "Tools: " + tools|tojson(indent=4) }}{%- endif %}
{%- for turn in messages %}
    {{- '<|start_header_id|>' + turn['role'] + '<|end_header_id|>\\n\\n' + turn['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    "mistral": """\
{{ bos_token }}{% set ns = namespace(count=0) %}{% for turn in messages %}
{%- if turn.role in ['user', 'assistant'] %}{% if (turn.role == 'user') != (ns.count % 2 == 0) %}{{ raise_exception('Roles alternate: ' ~ turn.role ~ ' at ' ~ loop.index) }}{% endif %}{% set ns.count = ns.count + 1 %}{% endif %}
{%- if turn.role == 'user' %}{% if loop.last and messages[0].role == 'system' %}{{ '[INST] ' + messages[0].content + '\\n\\n' + turn.content + '[/INST]' }}{% else %}{{ '[INST] ' + turn.content + '[/INST]' }}{% endif %}
{%- elif turn.role == 'assistant' %}{{ ' ' + turn.content|trim + eos_token }}
{%- elif turn.role != 'system' %}{{ raise_exception('Only system, user and assistant') }}{% endif %}
{%- endfor %}
""",
    "zephyr": """\
{% for turn in messages %}
{% if turn['role'] == 'user' %}
{{ '<|user|>\\n' + turn['content'] + eos_token }}
{% elif turn['role'] == 'system' %}
{{ '<|system|>\\n' + turn['content'] + eos_token }}
{% elif turn['role'] == 'assistant' %}
{{ '<|assistant|>\\n'  + turn['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}
""",
    "generation": """\
{% for turn in messages %}
  {% if turn.role == 'assistant' %}
<|a|>{% generation %}{% set closing = eos_token %}{{ turn.content }}{{ closing }}
{% endgeneration %}{{ closing }}
  {%- else %}
<|{{ turn.role[0] }}|>{{ turn.content }}
  {% endif %}
{% endfor %}
{%- if add_generation_prompt %}<|a|>{% endif %}
""",
    "python": """\
{%- macro shout(text, mark='!') -%}{{ text.upper() ~ mark }}{%- endmacro -%}
{% for turn in messages %}{% if turn.role == 'system' %}{% continue %}{% endif %}
{{ loop.index }}/{{ loop.length }} {{ turn.role.title() }} {{ shout(turn.role, mark='?') }} {{ turn.content.split('\\n')|join(' / ') }}
{{ turn|tojson }}|{{ turn.content|tojson(ensure_ascii=True) }}|{{ {'b': [1, 2.5, none, true], 'a': {}, 'c': []}|tojson(indent=2, sort_keys=True) }}
{{ turn.get('name', 'nobody') }} {{ turn.items()|list|length }} {% for key, value in turn.items() %}{{ key }}={{ value|length }};{% endfor %}
{{ none }} {{ true }} {{ 1.0 }} {{ 7 // 2 }} {{ 7 / 2 }} {{ [1, 'a'] }} {{ turn.missing }} {{ 'x' if turn.missing is defined else 'y' }}
{{ turn.content.replace('e', '3')[:12] }} {{ turn.content[::-1][:5] }} {{ '%s-%d'|format(turn.role, 3) }} {{ turn.content|length }} {{ turn.content.find('e') }}
{{ messages|selectattr('role', 'equalto', 'user')|map(attribute='content')|list|length }} {{ range(2, 9, 3)|list }} {{ dict(a=1)['a'] }}
{% if loop.index == 4 %}{% break %}{% endif %}
{% endfor %}
{#- a comment -#}
  {{- bos_token }}{{ pad_token }}{{ eos_token }}{# another #}
{% raw %}{{ raw }}{% endraw %}
""",
}

CONVERSATIONS = {
    "one": [{"role": "user", "content": "What is 2 + 2?"}],
    "answered": [{"role": "user", "content": "  Hello there \n"}, {"role": "assistant", "content": "Good day!"}],
    "system": [
        {"role": "system", "content": " You are <terse> & \"exact\". "},
        {"role": "user", "content": "Wie heißt du?\nEin Wort."},
        {"role": "assistant", "content": "Ñandú 🦤\n"},
        {"role": "user", "content": "And in French, l'été?"},
    ],
    "thoughts": [
        {"role": "user", "content": "Add 1 to 1."},
        {"role": "assistant", "content": "<think>\n1 + 1\n</think>\n\n2"},
        {"role": "user", "content": "And again."},
        {"role": "assistant", "content": "3", "reasoning": "2 + 1"},
    ],
    "two_users": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
    "tool": [{"role": "user", "content": "x"}, {"role": "tool", "content": "{\"a\": 1}", "name": "f"}],
}


class FixedTime(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(TIME, datetime.timezone.utc)


def render(template, messages, ask):
    try:
        text, places = chat.render_jinja_template(
            [messages], chat_template=template, add_generation_prompt=ask,
            return_assistant_tokens_mask="generation %}" in template, **SPECIAL)
    except jinja2.exceptions.TemplateError:
        return None
    return {"text": text[0], "places": places[0] if places else []}


def main():
    chat.datetime = FixedTime
    cases = [
        {"template": name, "conversation": conversation, "ask": ask, "expected": render(template, messages, ask)}
        for name, template in TEMPLATES.items()
        for conversation, messages in CONVERSATIONS.items()
        for ask in ((False, True) if messages[-1]["role"] == "user" else (False,))
    ]
    fixture = {"special": SPECIAL, "time": TIME, "templates": TEMPLATES, "conversations": CONVERSATIONS, "cases": cases}
    path = Path(__file__).parents[2] / "tests" / "golden" / "chat_templates.json"
    path.write_text(json.dumps(fixture, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    print(path, len(cases), "cases")


if __name__ == "__main__":
    main()
