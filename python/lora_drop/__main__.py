"""The program: `python -m lora_drop` and, from the program itself, this file."""

import sys
from pathlib import Path

if not __package__:
    # Started as a file: its folder must not hide other packages, as lora_drop/peft.py would hide peft.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from lora_drop._program import main

if __name__ == "__main__":
    sys.exit(main())
