"""Owns the options that several commands share: their names, their types and their help."""

from typing import Annotated

import typer

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="A run, a model folder or a name; otherwise the newest model there is.",
        show_default=False,
    ),
]
SeedOption = Annotated[
    int | None,
    typer.Option(
        "--seed",
        help="With the same options the same text; otherwise by chance.",
        show_default=False,
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
PrecisionOption = Annotated[str, typer.Option("--precision", help="auto, fp32, bf16 or fp16.")]
# Decoding on a CPU also has int8, and a compiler.
DecodingPrecisionOption = Annotated[str, typer.Option("--precision", help="auto, fp32, bf16, fp16 or int8.")]
CompileOption = Annotated[
    str, typer.Option("--compile", help="auto (what gpt2 compile made, or where it pays), on or off.")
]
ThreadsOption = Annotated[int, typer.Option("--threads", min=0, help="CPU threads; 0 is one a core.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]

# Their defaults live in generation/sampling.py, which costs an import of torch; a test compares.
TemperatureOption = Annotated[
    float | None,
    typer.Option("--temperature", "-t", help="0 is greedy, higher is wilder.", show_default="0.8"),
]
TopKOption = Annotated[
    int | None, typer.Option("--top-k", help="Only the K likeliest tokens; 0 is all.", show_default="40")
]
TopPOption = Annotated[
    float | None,
    typer.Option("--top-p", help="Only the likeliest tokens that reach P together.", show_default="1.0"),
]
MinPOption = Annotated[
    float | None,
    typer.Option(
        "--min-p", help="Drop tokens less than P times as likely as the likeliest.", show_default="0.0"
    ),
]
RepetitionPenaltyOption = Annotated[
    float | None, typer.Option("--repetition-penalty", help="Above 1 repeats less.", show_default="1.0")
]
