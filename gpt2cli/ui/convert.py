"""Owns how a conversion looks: a bar while tensors pass, and the receipt at its end."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from gpt2cli.convert.pipeline import ConvertProgress
from gpt2cli.ui.console import is_terminal, printable


def show_converting(steps: Iterator[ConvertProgress], console: Console) -> dict[str, Any]:
    """Draw the steps as they come; returns the receipt of the last."""
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        console=console,
        transient=True,
        disable=not is_terminal(console),
    )
    receipt: dict[str, Any] = {}
    with bar:
        task = bar.add_task("reading", total=None)
        for step in steps:
            bar.update(task, description=step.phase, completed=step.n_done, total=step.n_total or None)
            receipt = step.receipt
    return receipt


def print_receipt(receipt: dict[str, Any], console: Console) -> None:
    """Where each tensor comes from, how many parameters there are, and what the comparison gave."""
    rows = [
        (
            tensor["source"],
            tensor["target"],
            _shape(tensor["shape"]),
            "turned" if tensor["transposed"] else "",
        )
        for tensor in receipt["tensors"]
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for source, target, shape, turned in rows:
        line = f"{source:<{widths[0]}}  {target:<{widths[1]}}  {shape:<{widths[2]}}  {turned}"
        console.print(printable(line.rstrip()), style="faint")
    for note in receipt["notes"]:
        console.print(printable(f"note: {note}"))
    source = receipt["source"]
    files = ", ".join(source["files"])
    console.print(printable(f"source: {source['path']} ({source['format']}; {files})"))
    parameters = receipt["parameters"]
    size = f", those of {parameters['size']}" if parameters["size"] else ", not one of OpenAI's sizes"
    console.print(f"tensors: {len(rows)}, all used; parameters: {parameters['count']:,}{size}")
    for name, sha256 in receipt["output"]["files"].items():
        console.print(printable(f"SHA-256 {sha256}  {name}"), style="faint")
    _print_verification(receipt["verification"], console)
    if back := receipt.get("read_back"):
        console.print(
            f"read back: all {back['tensors']} tensors are in the file as they should be", style="good"
        )


def _print_verification(found: dict[str, Any] | None, console: Console) -> None:
    if found is None:
        console.print("not compared with the source (--verify does it)", style="warn")
        return
    console.print(
        f"perplexity on a fixed paragraph: {_number(found['perplexity'])},"
        f" of the source {_number(found['perplexity_of_source'])}"
    )
    console.print(
        f"PASS: over {found['tokens']} tokens the logits differ from an independent computation by at most"
        f" {found['max_difference']:.1e} ({found['tolerance']:g} allowed), in fp32 by"
        f" {found['max_difference_fp32']:.1e}",
        style="good",
    )


def _shape(shape: list[int]) -> str:
    return " x ".join(str(size) for size in shape)


def _number(value: float | None) -> str:
    return "beyond measure" if value is None else f"{value:,.2f}"
