"""Ollama's Modelfile beside a GGUF: the context, and the chat template in Go's template language.

The format is described in Ollama's docs/modelfile.md. A value in three quotes may hold line feeds.
"""

from gpt2cli.jinja_template import JinjaTemplate
from gpt2cli.templates import Template
from gpt2cli.tokenizer.base import Tokenizer


def modelfile(
    gguf: str, n_positions: int, template: Template | JinjaTemplate | None, tokenizer: Tokenizer
) -> str:
    """The Modelfile of a model in the file `gguf` beside it.

    Without a template the text is continued. A template of the model's own is left to Ollama, which
    knows the common ones by the text that is in the GGUF.
    """
    lines = [f"FROM ./{gguf}", f"PARAMETER num_ctx {n_positions}"]
    if template is None:
        return "\n".join([*lines, "TEMPLATE {{ .Prompt }}", ""])
    if isinstance(template, JinjaTemplate):
        ends = dict.fromkeys((tokenizer.special.eos, *tokenizer.special.stops))
        return "\n".join([*lines, *(_stop(tokenizer.decode([id])) for id in ends), ""])
    reply, default = template.reply, template.opening(None).rstrip("\n")
    end = tokenizer.decode([tokenizer.end_of_text])
    text = (
        f"{{{{ if .System }}}}{template.opening('{{ .System }}')}{{{{ end }}}}"
        "{{ range .Messages }}"
        f'{{{{ if eq .Role "user" }}}}{template.message("{{ .Content }}")}'
        f'{{{{ else if eq .Role "assistant" }}}}{reply}{{{{ .Content }}}}{end}{{{{ end }}}}'
        f"{{{{ end }}}}{reply}"
    )
    lines.append(f'TEMPLATE """{text}"""')
    if default:
        lines.append(f'SYSTEM """{default}"""')
    return "\n".join([*lines, *map(_stop, template.stops), ""])


def _stop(text: str) -> str:
    return f'PARAMETER stop """{text}"""'
