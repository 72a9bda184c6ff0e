"""The tables of `gpt2 inspect`: plain aligned lines, the same on a terminal and in a pipe.

Lines are never cut or wrapped: a name that is cut cannot be searched for.
"""

from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any

from gpt2cli.checkpoints.info import ModelInfo, ModuleInfo, TensorInfo, TensorStatistics, nearest_size
from gpt2cli.errors import counted
from gpt2cli.generation.activations import Activation, ForwardTrace, NextToken
from gpt2cli.tokenizer.base import Tokenizer
from gpt2cli.training.lineage import Facts, Lineage
from gpt2cli.ui.console import aligned, out, printable

Row = Sequence[str]

SIZES = {"124M": "small", "355M": "medium", "774M": "large", "1558M": "XL"}
MODULE_NOTES = {
    "wte": "token embedding",
    "wpe": "position embedding",
    "ln_1": "layer norm",
    "attn.c_attn": "q, k and v side by side",
    "attn.c_proj": "mixes the heads' outputs",
    "ln_2": "layer norm",
    "mlp.c_fc": "up to n_inner, then GELU",
    "mlp.c_proj": "back to n_embd",
    "ln_f": "final layer norm",
}
ACTIVATION_NOTES = {
    "input_ids": "an id per token",
    "wte": "token embeddings",
    "wpe": "position embeddings",
    "wte+wpe": "the residual stream begins",
    "attn.c_attn": "q, k and v side by side",
    "attn.q": "queries",
    "attn.k": "keys",
    "attn.v": "values",
    "attn.weights": "attention weights, after the softmax",
    "attn.y": "weighted values, heads concatenated",
    "attn.c_proj": "added to the residual stream",
    "after_attn": "the residual stream",
    "mlp.c_proj": "added to the residual stream",
    "after_mlp": "the residual stream",
    "logits": "one per token of the vocabulary",
}
MOST_TOKENS = 64  # of a prompt, listed one per line
LENS_TOKENS = 5  # of each block
BAR = 24  # characters of a probability of 1


def show_summary(summary: ModelInfo, lineage: Lineage) -> None:
    """The model as a whole, to stdout."""
    _print_heading(summary, verified=False)
    _print_table("modules", outline(summary), right=(3, 4))
    for line in _matrices(summary.modules):
        _print(f"  {line}", "faint")
    _print_table("memory", _memory(summary), right=(1, 2))
    _print_table("config.json", _config(summary), right=(1,))
    _print_table("tokenizer", _tokenizer(summary.tokenizer))
    _print_table("where it comes from", _origin(summary, lineage))


def show_tensors(summary: ModelInfo, tensors: Sequence[TensorInfo]) -> None:
    """The statistics of each tensor in the file."""
    _print_heading(summary, verified=True)
    rows = [
        (printable(t.name), _shape(t.shape), t.dtype, *_numbers(t.statistics, t.statistics.mean))
        for t in tensors
    ]
    _print_table("tensors, as stored in the file", _with_not_finite(TENSOR_COLUMNS, rows), right=range(3, 9))


def show_prompt(
    summary: ModelInfo,
    anatomy: ForwardTrace,
    likeliest: Sequence[NextToken],
    lens: Sequence[Sequence[NextToken]],
) -> None:
    """One forward pass: tokens, activations, and the likeliest next tokens, of each block at last."""
    tokenizer, ids = summary.tokenizer, anatomy.ids
    _print_heading(summary, verified=True)
    title = f"prompt: {counted(len(ids), 'token')}, with their probabilities after those before them"
    _print_table(title, _tokens(tokenizer, anatomy), right=(0, 1, 2))
    _print_table("activations, in order of computation", activations(anatomy), right=range(2, 6))
    if likeliest:
        rows = [("", "id", "probability", "token"), *_next(tokenizer, likeliest)]
        _print_table("next token", rows, right=(0, 1, 2))
        title = "logit lens: the next token, were the model to end after a block"
        _print_table(title, _lens(tokenizer, lens))


def outline(summary: ModelInfo) -> list[Row]:
    """The table of modules: the first block in full, the others, which are equal, in one line."""

    def row(name: str, n: int, weight: str = "", bias: str = "", note: str = "") -> Row:
        return name, weight, bias, f"{n:,}", f"{n / summary.n_parameters:.1%}", note

    def of(module: ModuleInfo, indent: str = "") -> Row:
        name = module.name.removeprefix("h.0.")
        bias = _shape(module.bias) if module.bias else "-"
        tied = "untied from wte" if module.n_parameters else "tied to wte"
        note = MODULE_NOTES.get(name, tied)
        return row(indent + name, module.n_parameters, _shape(module.weight), bias, note)

    others = [module for module in summary.modules if not module.name.startswith("h.")]
    first = [module for module in others if module.name in ("wte", "wpe")]
    last = others[len(first) :]
    block = [module for module in summary.modules if module.name.startswith("h.0.")]
    each, n_others = sum(module.n_parameters for module in block), summary.config.n_layer - 1
    alike = []
    if n_others == 1:
        alike = [row("h.1", each, "the same")]
    elif n_others > 1:
        alike = [row(f"h.1 ... h.{n_others}", each * n_others, "each the same")]
    return [
        ("module", "weight", "bias", "parameters", "share", ""),
        *map(of, first),
        row("h.0", each, note="a block"),
        *(of(module, "  ") for module in block),
        *alike,
        *map(of, last),
        row("total", summary.n_parameters),
    ]


def activations(anatomy: ForwardTrace) -> list[Row]:
    """The table of activations: the first block in full, of the others only their output."""
    rows: list[Row] = []
    is_rotary = all(activation.name != "wpe" for activation in anatomy.activations)
    for activation in anatomy.activations:
        layer = _layer_of(activation)
        if layer > 0 and not activation.name.endswith(".after_mlp"):
            continue
        if layer == 1:
            rows.append(("the other blocks do the same; their outputs:",))
        numbers = _numbers(activation.statistics) if activation.statistics else ("", "", "", "")
        note = ACTIVATION_NOTES.get(activation.name.removeprefix("h.0."), "")
        note += ", rotated by position" if is_rotary and note in ("queries", "keys") else ""
        rows.append((activation.name, _shape(activation.shape), *numbers, note))
    header = _with_not_finite(("activation", "shape", "std", "min", "max"), rows)[0]
    return [(*header, ""), *rows]


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """A token as a Python literal: ' the', '\\n', or b'\\xe6' for a part of a character."""
    data = tokenizer.decode_bytes([token])
    try:
        return printable(repr(data.decode("utf-8")))
    except UnicodeDecodeError:
        return repr(data)


TENSOR_COLUMNS = ("tensor", "shape", "dtype", "mean", "std", "min", "max")


def _numbers(statistics: TensorStatistics, *first: float | None) -> Row:
    """Cells of a row that ends with std, min, max and the counts of NaN and Inf."""
    values = (*first, statistics.std, statistics.min, statistics.max)
    trouble = (("NaN", statistics.n_nan), ("Inf", statistics.n_inf))
    return (
        *("-" if value is None else f"{value:.4g}" for value in values),
        ", ".join(f"{n:,} {kind}" for kind, n in trouble if n),
    )


def _with_not_finite(header: Row, rows: Sequence[Row]) -> list[Row]:
    """Adds a heading for the last column if any row fills it."""
    n = len(header)
    return [(*header, "not finite" if any(row[n:] and row[n] for row in rows) else ""), *rows]


def _print_heading(summary: ModelInfo, *, verified: bool) -> None:
    _print(printable(str(summary.folder)), "strong")
    _print(f"GPT-2 of {summary.n_parameters:,} parameters{_size(summary)}")
    _print(_verification(summary, verified), "faint")


def _size(summary: ModelInfo) -> str:
    known = nearest_size(summary.config)
    if not known:
        return ", not one of OpenAI's shapes"
    size, other = known
    numbers = [f"{name} {getattr(summary.config, name)}" for name in other]
    but = f", but with {' and '.join(numbers)}" if numbers else ""
    return f", {size}: the shape of OpenAI's {SIZES[size]} model{but}"


def _verification(summary: ModelInfo, verified: bool) -> str:
    manifest = summary.manifest
    if not manifest:
        return "no manifest: not written by gpt2, so its content cannot be verified"
    by = printable(manifest.written_by)
    if verified:
        return f"verified: tokenizer, config and weights are as {by} wrote them"
    return (
        f"manifest of {by}: the small ones of its {manifest.n_files} files are verified,"
        " the weights only with --tensors or --prompt"
    )


def _matrices(modules: Sequence[ModuleInfo]) -> Row:
    names = dict.fromkeys(m.name.split(".", 2)[2] for m in modules if m.transposed)
    return (
        "Matrices are (out, in), as the model multiplies them: y = x W^T + b.",
        f"The file keeps {', '.join(names)} as (in, out).",
    )


def _memory(summary: ModelInfo) -> list[Row]:
    n = summary.config.n_positions
    dtypes = ", ".join(f"{count} tensors in {name}" for name, count in summary.dtypes.items())
    rows = [
        ("weights", *(_bytes(summary.weight_bytes(width)) for width in (4, 2))),
        ("KV cache, per token", *(_bytes(summary.cache_bytes(width)) for width in (4, 2))),
        (f"KV cache, {n:,} tokens", *(_bytes(summary.cache_bytes(width, n)) for width in (4, 2))),
    ]
    return [("", "fp32", "bf16"), *rows, (f"model.safetensors holds {dtypes}: {_bytes(summary.n_bytes)}",)]


def _config(summary: ModelInfo) -> list[Row]:
    c = summary.config
    tanh = c.activation_function == "gelu_new"
    rates = ", ".join(f"{rate:g}" for rate in dict.fromkeys(c.dropouts.values()))
    return [
        ("n_layer", f"{c.n_layer}", "blocks"),
        ("n_head", f"{c.n_head}", f"heads of {c.head_width} channels"),
        ("n_embd", f"{c.n_embd}", "channels of the residual stream"),
        ("n_inner", f"{c.mlp_width}", "channels inside the MLP"),
        ("n_positions", f"{c.n_positions}", f"tokens of context, {c.positions} positions"),
        ("vocab_size", f"{c.vocab_size}", "tokens in the vocabulary"),
        ("activation_function", c.activation_function, "the tanh GELU" if tanh else "the exact GELU"),
        ("dropout", rates, "in training only"),
        ("layer_norm_epsilon", f"{c.layer_norm_epsilon:g}", ""),
        ("initializer_range", f"{c.initializer_range:g}", "std of new matrices"),
        ("tie_word_embeddings", "yes" if c.tie_word_embeddings else "no", "lm_head is wte"),
    ]


def _tokenizer(tokenizer: Tokenizer) -> list[Row]:
    kinds = {"gpt2": "GPT-2's byte-level BPE", "bpe": "byte-level BPE", "chars": "single characters"}
    special = tokenizer.special

    def named(*ids: int | None) -> str:
        return ", ".join(f"{id}  {token_text(tokenizer, id)}" for id in ids if id is not None)

    return [
        ("kind", f"{tokenizer.name}: {kinds.get(tokenizer.name, 'custom')}"),
        ("tokens", f"{tokenizer.n_vocab:,}"),
        ("end of text", named(special.eos)),
        *([("generation stops at", named(*special.stops))] if special.stops != (special.eos,) else []),
        *([("each text begins with", named(special.bos))] if special.adds_bos else []),
        *([("padding", named(special.pad))] if special.pad is not None else []),
        ("fingerprint", tokenizer.fingerprint[:16]),
    ]


def _origin(summary: ModelInfo, lineage: Lineage) -> list[Row]:
    rows = [
        *_recipe(lineage.recipe, lineage.progress),
        *((("run", str(lineage.run)),) if lineage.run else ()),
        *(row for session in lineage.sessions for row in _session(session)),
        *_conversion(lineage),
        *(("problem", problem) for problem in lineage.problems),
    ] or [("unknown", "no recipe, run or conversion is recorded beside it")]
    return [tuple(printable(cell).replace("\n", " ") for cell in row) for row in rows]


def _recipe(recipe: dict[str, Any], progress: Facts) -> Iterator[Row]:
    if recipe:
        data, optim = (_section(recipe, name) for name in ("data", "optim"))
        parts = [str(recipe.get("task", "a task without a name"))]
        parts += [f"on {data['source']}"] if "source" in data else []
        parts += [f"{optim['steps']} steps"] if "steps" in optim else []
        parts += [f"seed {recipe['seed']}"] if "seed" in recipe else []
        yield "recipe", ", ".join(parts)
    if "progress.step" in progress:
        measure, best = "validation loss", progress.get("progress.best_loss")
        if (by := progress.get("progress.best_by", "loss")) != "loss":
            measure, best = str(by), progress.get("progress.best_value")
        at = progress.get("progress.best_step")
        said = f"; best {measure} {best:.3f} at step {at}" if isinstance(best, float) else ""
        yield "saved at", f"step {progress['progress.step']}{said}"
    n_tokens = progress.get("identity.train tokens")
    if isinstance(n_tokens, int):
        digest = f", digest {progress['identity.data']}" if "identity.data" in progress else ""
        yield "trained on", f"{n_tokens:,} tokens{digest}"


def _section(recipe: dict[str, Any], name: str) -> dict[str, Any]:
    section = recipe.get(name)
    return section if isinstance(section, dict) else {}


def _session(session: Facts) -> Iterator[Row]:
    machine = [session.get(f"machine.{name}") for name in ("device", "precision")]
    versions = [
        f"{name} {session[key]}"
        for name, key in (("gpt2cli", "gpt2cli"), ("torch", "machine.torch"), ("Python", "machine.python"))
        if key in session
    ]
    when = f"{session.get('started', 'once')} from step {session.get('from_step', '?')}"
    yield "session", ", ".join([when, *(str(word) for word in machine if word), *versions])
    if "data.source" in session:
        origin = f" ({session['data.origin']})" if "data.origin" in session else ""
        sha256 = f", SHA-256 {str(session['data.sha256'])[:16]}" if "data.sha256" in session else ""
        yield "data", f"{session['data.source']}{origin}{sha256}"


def _conversion(lineage: Lineage) -> Iterator[Row]:
    facts = lineage.conversion
    if not facts:
        return
    yield "converted", f"from {facts.get('source.path', 'somewhere')} ({facts.get('source.format', '?')})"
    if lineage.sources:
        yield "files", ", ".join(lineage.sources)
    results = {True: "passed", False: "FAILED"}
    passed = facts.get("verification.passed")
    proof = [results[passed] if isinstance(passed, bool) else "not done"]
    for key, label in (("max_difference", "logits differ by at most"), ("perplexity", "perplexity")):
        value = facts.get(f"verification.{key}")
        proof += [f"{label} {value:.4g}"] if isinstance(value, float) else []
    yield "verification", ", ".join(proof)
    for note in lineage.notes:
        yield "note", note


def _tokens(tokenizer: Tokenizer, anatomy: ForwardTrace) -> Iterator[Row]:
    ids = anatomy.ids
    chances = ["-", *(f"{p:.2%}" for p in anatomy.probabilities)]  # nothing precedes the first
    n_hidden = max(len(ids) - MOST_TOKENS, 0)
    first = MOST_TOKENS // 2
    yield "", "id", "probability", "token"
    for place, token in enumerate(ids):
        if n_hidden and place == first:
            yield "...", "", "", f"{n_hidden} more"
        if not n_hidden or not first <= place < first + n_hidden:
            yield f"{place}", f"{token}", chances[place], token_text(tokenizer, token)


def _lens(tokenizer: Tokenizer, lens: Sequence[Sequence[NextToken]]) -> Iterator[Row]:
    """A row per block, the likeliest tokens of its last position side by side."""
    for block, found in enumerate(lens):
        tokens = found[:LENS_TOKENS]
        cells = (f"{token_text(tokenizer, token.id)} {token.probability:.1%}" for token in tokens)
        yield f"h.{block}", *(cells if tokens else ["not finite"])


def _next(tokenizer: Tokenizer, likeliest: Sequence[NextToken]) -> Iterator[Row]:
    width = max(len(token_text(tokenizer, token.id)) for token in likeliest)
    for place, token in enumerate(likeliest, 1):
        text = token_text(tokenizer, token.id)
        bar = "#" * round(token.probability * BAR)
        yield f"{place}", f"{token.id}", f"{token.probability:.2%}", f"{text:<{width}}  {bar}"


def _layer_of(activation: Activation) -> int:
    """The number of the block; -1 outside the blocks."""
    parts = activation.name.split(".")
    return int(parts[1]) if parts[0] == "h" else -1


def _shape(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, shape))})"


def _bytes(n: int) -> str:
    for size, unit in ((1 << 30, "GiB"), (1 << 20, "MiB")):
        if n >= size:
            return f"{n / size:,.1f} {unit}"
    return f"{n / 1024:,.1f} KiB"


def _print_table(title: str, rows: Iterable[Row], right: Container[int] = ()) -> None:
    _print("")
    _print(title, "strong")
    for line in aligned(rows, right):
        _print(f"  {line}")


def _print(line: str, style: str = "") -> None:
    out().print(line, style=style)
