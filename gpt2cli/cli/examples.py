"""Examples of every command, as its help shows them: at most 58 characters, for narrow terminals."""

EXAMPLES = {
    "": ("gpt2 pretrain gpt2-mini data.source=novel.txt", "gpt2 chat --help"),
    "recipes": ("gpt2 recipes", "gpt2 recipes show verdict"),
    "recipes list": ("gpt2 recipes list", "gpt2 recipes list --json"),
    "recipes show": ("gpt2 recipes show verdict", "gpt2 recipes show spam-tiny"),
    "recipes keys": ("gpt2 recipes keys", "gpt2 recipes keys optim"),
    "recipes copy": ("gpt2 recipes copy verdict my.yaml", "gpt2 recipes copy spam ."),
    "recipes check": ("gpt2 recipes check my.yaml", "gpt2 recipes check verdict optim.lr=1e-3"),
    "runs": ("gpt2 runs", "gpt2 runs --cache"),
    "runs show": ("gpt2 runs show verdict", "gpt2 runs show 124M --json"),
    "runs plot": (
        "gpt2 runs plot verdict other --x tokens",
        "gpt2 runs plot verdict --x time --out verdict.png",
    ),
    "runs prune": ("gpt2 runs prune --dry-run", "gpt2 runs prune verdict"),
    "runs rm": ("gpt2 runs rm other", "gpt2 runs rm downloads/openai/124M"),
    "tokenizer": ("gpt2 tokenizer train --help", 'gpt2 tokenizer show "Every effort"'),
    "tokenizer train": (
        "gpt2 tokenizer train books/ --out tokenizers/mine",
        "gpt2 tokenizer train novel.txt --size 1000 --out small",
    ),
    "tokenizer show": (
        'gpt2 tokenizer show "Every effort"',
        "gpt2 tokenizer show --file a.txt --tokenizer runs/verdict",
    ),
    "prepare": (
        "gpt2 prepare novel.txt --out data/novel",
        "gpt2 prepare 'texts/*.jsonl' --out data/texts",
    ),
    "pretrain": (
        "gpt2 pretrain gpt2-mini data.source=novel.txt",
        "gpt2 pretrain finetune-text data.source=novel.txt",
        "gpt2 pretrain my.yaml --resume",
    ),
    "finetune-classify": (
        "gpt2 finetune-classify spam-tiny",
        "gpt2 finetune-classify spam-tiny data.source=reviews.csv",
    ),
    "finetune-instruct": (
        "gpt2 finetune-instruct instruct",
        "gpt2 finetune-instruct instruct-lora init=newest",
    ),
    "grid": (
        "gpt2 grid positions model.positions=learned,rotary",
        "gpt2 grid my.yaml optim.lr=1e-3,3e-3 --seeds 5",
    ),
    "generate": (
        'gpt2 generate "Every effort moves you"',
        'gpt2 generate --model 124M --temperature 0 "Once upon a"',
        "gpt2 generate --prompts prompts.txt --json",
    ),
    "chat": ("gpt2 chat runs/instruct", "gpt2 chat runs/instruct --json < questions.txt"),
    "classify": (
        'gpt2 classify runs/spam-tiny "You have won a prize!"',
        "gpt2 classify runs/spam-tiny --file messages.txt",
    ),
    "compile": ("gpt2 compile 124M", "gpt2 compile 124M --precision bf16"),
    "inspect": ("gpt2 inspect 124M", 'gpt2 inspect runs/verdict --prompt "The cat sat"'),
    "evaluate": (
        "gpt2 evaluate runs/verdict --on novel.txt",
        "gpt2 evaluate 124M runs/verdict --on wikitext-2-test",
        "gpt2 evaluate 124M --on lambada:word,hellaswag",
    ),
    "score": ("gpt2 score lines.txt --model 124M", "gpt2 score lines.txt --json"),
    "judge": (
        "gpt2 judge runs/instruct --ollama llama3.2",
        "gpt2 judge runs/instruct runs/other --ollama llama3.2",
    ),
    "download": ("gpt2 download 124M", "gpt2 download --list"),
    "convert": (
        "gpt2 convert ckpt.pt --out models/mine",
        "gpt2 convert runs/verdict --to gguf --dtype q8_0",
    ),
}
