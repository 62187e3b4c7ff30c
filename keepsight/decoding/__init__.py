"""Methods that change the scores of the next token, with one file for each paper."""
