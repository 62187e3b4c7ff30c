"""``python -m keepsight`` is ``keepsight``."""

from keepsight.cli.main import run

if __name__ == "__main__":
    run()
