"""Keepsight's scores laid against the official code's, on published captions and answers.

    python tests/parity [SHARED_DIR] [--only MODULE]

Every module without a leading underscore gives ``differences(shared: Path) -> Iterator[Row]``.
"""
