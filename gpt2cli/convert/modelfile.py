"""Ollama's Modelfile beside a GGUF: the context, and the chat template in Go's template language.

The format is described in Ollama's docs/modelfile.md. A value in three quotes may hold line feeds.
"""

from gpt2cli.jinja_template import JinjaTemplate
from gpt2cli.templates import PREAMBLE, Template
from gpt2cli.tokenizer.base import Tokenizer

# {name of a template: the default system text, a system's text, a user's message, what begins an answer}
_FORMS = {
    "alpaca": (PREAMBLE, "{{ .System }}\n\n", "### Instruction:\n{{ .Content }}\n\n", "### Response:\n"),
    "chat": ("", "System:\n{{ .System }}\n\n", "User:\n{{ .Content }}\n\n", "Assistant:\n"),
}


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
    default, system, question, reply = _FORMS[template.name]
    end = tokenizer.decode([tokenizer.end_of_text])
    text = (
        f"{{{{ if .System }}}}{system}{{{{ end }}}}"
        "{{ range .Messages }}"
        f'{{{{ if eq .Role "user" }}}}{question}'
        f'{{{{ else if eq .Role "assistant" }}}}{reply}{{{{ .Content }}}}{end}{{{{ end }}}}'
        f"{{{{ end }}}}{reply}"
    )
    lines.append(f'TEMPLATE """{text}"""')
    if default:
        lines.append(f'SYSTEM """{default}"""')
    return "\n".join([*lines, *map(_stop, template.stops), ""])


def _stop(text: str) -> str:
    return f'PARAMETER stop """{text}"""'
