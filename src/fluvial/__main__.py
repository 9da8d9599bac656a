"""``python -m fluvial`` is the command line; ``torchrun -m fluvial fit …`` starts it as several processes."""

from fluvial.cli import main

if __name__ == "__main__":
    main()
