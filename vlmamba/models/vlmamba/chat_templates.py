# SPDX-License-Identifier: Apache-2.0
"""Prompts of chats, as Jinja templates.

A message's content is a text, or a list of {"type": "image"} and {"type": "text", "text": ...}. What the model is to
say stands between generation marks, with the token that ends it: losses on the answers only find it there.
"""

# this library's own: images where they are in the messages
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{ '<|assistant|>' }}{% generation %}{% if message['content'] is string %}{{ message['content'] }}{% else %}\
{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}\
{{ '</s>' }}{% endgeneration %}
{%- else -%}
{{ '<|user|>' }}{% if message['content'] is string %}{{ message['content'] }}{% else %}\
{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>' }}\
{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif -%}
"""

# the same for models with a rationale traversal: its tokens behind every question
RATIONALE_CHAT_TEMPLATE = CHAT_TEMPLATE.replace(
    "{%- endif -%}\n{%- endfor -%}", "{{ '<tor>' if message['role'] == 'user' }}{%- endif -%}\n{%- endfor -%}"
)

# Cobra's (h-zhao1997/cobra, models/backbones/llm/prompting): all images before all text, no beginning of a sequence. A
# written "<image>" and blanks around a message go; an empty answer is one blank; a system message, which Cobra was
# not trained with, stands in front of the question after it. A question ends with the words that an answer follows,
# whether one is asked for or not. The official `get_potential_prompt`, which keeps "<image>" and forgets line breaks
# between turns, makes no prompt that is answered: it is not copied
_COBRA = """\
{%- macro text(content) -%}
{%- if content is string -%}{{ content | replace('<image>', '') | trim }}
{%- else -%}{%- set found = content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join('') -%}
{{ found | replace('<image>', '') | trim }}
{%- endif -%}
{%- endmacro -%}
{%- for message in messages if message['content'] is not string -%}
{%- for part in message['content'] if part['type'] == 'image' -%}{{ '<image>' }}{%- endfor -%}
{%- endfor -%}
{%- set state = namespace(system='', first=true) -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{%- set state.system = text(message['content']) ~ '\\n\\n' -%}
{%- elif message['role'] == 'assistant' -%}
{% generation %}{{ text(message['content']) or ' ' }}{{ '<|endoftext|>' }}{% endgeneration %}
{%- else -%}
{{ '' if state.first else '\\n' }}{{ 'QUESTION' }}{{ state.system }}{{ text(message['content']) }}{{ 'ANSWER' }}
{%- set state.system = '' -%}
{%- set state.first = false -%}
{%- endif -%}
{%- endfor -%}
"""


def _cobra(question: str, answer: str) -> str:
    return _COBRA.replace("QUESTION", question).replace("ANSWER", answer)


# of the language models that were tuned for chats, mamba-2.8b-zephyr
COBRA_CHAT_TEMPLATE = _cobra(r"<|user|>\n", r"<|endoftext|>\n<|assistant|>\n")
# of those that were not, mamba-2.8b-slimpj
COBRA_BASE_CHAT_TEMPLATE = _cobra("In: ", r"\nOut: ")
