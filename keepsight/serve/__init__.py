"""A chat server over one model: the OpenAI protocol outside, one generation thread inside.

``engine.Engine`` takes prepared questions from any thread, batches those that can be answered together, and tells of every
token as it comes. ``prompts`` makes model inputs of whole conversations. Neither needs the extra ``serve``; ``app`` and
``server`` do. See ``docs/serve.md``.
"""
