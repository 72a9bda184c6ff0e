"""`python -m gpt2cli` is the same program as the installed command `gpt2`."""

from gpt2cli.cli.app import main

if __name__ == "__main__":
    main()
