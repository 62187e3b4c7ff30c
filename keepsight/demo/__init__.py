"""The demo world: drawn scenes of COCO objects, and a tiny LLaVA that hallucinates on them."""
