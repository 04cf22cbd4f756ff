"""``python -m cosmos_distill`` is ``cosmos-distill``."""

from cosmos_distill.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
