"""The command line: parses arguments, calls the package and prints.

Imports of torch, transformers and other large packages stay inside the commands, so that ``--help`` and refusals are
quick.
"""
