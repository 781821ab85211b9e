"""The chat template of a trained tokenizer, in the Jinja dialect of Hugging Face's apply_chat_template.

One turn is `<|im_start|>role`, a line end, the content, `<|im_end|>` and a line end (ChatML). Nothing is ever added
silently: there is no default system prompt, and functions appear only when `tools` are passed. What the assistant
writes, its `<|im_end|>` included, stands inside the generation markers: those are the tokens fine-tuning learns from,
and apply_chat_template(return_assistant_tokens_mask=True) gives them out. Content should not begin with a line end,
which would become one token with the line end before it.
"""

CHAT_TEMPLATE = r"""{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages and messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] + '\n\n' }}
    {%- endif %}
    {{- 'Functions that can be called, one JSON schema per line:\n' }}
    {%- for tool in tools %}
        {{- tool | tojson + '\n' }}
    {%- endfor %}
    {{- 'A call is written as <tool_call>{"name": ..., "arguments": {...}}</tool_call>.<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if not (tools and loop.first and message['role'] == 'system') %}
        {{- '<|im_start|>' + message['role'] + '\n' }}
        {%- if message['role'] == 'assistant' %}
            {%- generation %}
                {{- message['content'] or '' }}
                {%- for call in message['tool_calls'] or [] %}
                    {%- set call = call['function'] or call %}
                    {%- if loop.index > 1 or message['content'] %}
                        {{- '\n' }}
                    {%- endif %}
                    {{- '<tool_call>{"name": "' + call['name'] + '", "arguments": ' }}
                    {{- call['arguments'] if call['arguments'] is string else call['arguments'] | tojson }}
                    {{- '}</tool_call>' }}
                {%- endfor %}
                {{- '<|im_end|>' }}
            {%- endgeneration %}
            {{- '\n' }}
        {%- else %}
            {{- message['content'] + '<|im_end|>\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""
