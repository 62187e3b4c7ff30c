"""BEAF: scores of answers about pictures before and after an object is removed from them."""
