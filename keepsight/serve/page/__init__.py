"""A page for one model: two settings answer side by side, and a word shows where the model looked for it.

``studio`` does the work on the model, ``asked`` reads requests, ``desk`` keeps generations apart; none of them needs the
extra ``ui``. ``app`` and ``server`` do. See ``docs/chat-and-page.md``.
"""
