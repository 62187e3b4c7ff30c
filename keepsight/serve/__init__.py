"""A chat server over one model: OpenAI's protocol on the outside, one generation thread on the inside.

``batching_engine.BatchingEngine`` takes prepared requests from any thread, batches those that can be generated together, and
reports every token as it is generated. ``prompts`` turns whole conversations into model inputs. Neither needs the extra
``serve``; ``app`` and ``server`` do. ``page`` is the page of ``keepsight ui``. See ``docs/serve.md``.
"""
