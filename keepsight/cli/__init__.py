"""The command line: parse, print, exit codes. Heavy imports stay inside the commands."""
