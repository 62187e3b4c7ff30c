"""The demo world: drawn scenes of COCO objects, and a tiny LLaVA that hallucinates on them.

``world`` composes scenes, ``art`` draws them with the help of ``layout``, ``backdrops``, ``glyphs`` and ``covers``, and
``model`` loads the packaged checkpoint that was trained on them. All of it works offline.
"""
