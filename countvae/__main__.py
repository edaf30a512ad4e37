"""``python -m countvae`` is the command ``countvae``."""

from countvae.cli import main

if __name__ == "__main__":
    main(prog_name="countvae")
