"""A page for one model: two settings answer side by side, and a click on a word shows where the model looked for it.

``service`` does the work on the model, ``request_schema`` reads requests, and ``scheduler`` bounds how many requests are
worked on at the same time. None of these needs the extra ``ui``; ``app`` and ``server`` do. See ``docs/chat-and-page.md``.
"""
