"""Satellite scenes from STAC catalogues: rules of collections, search, plan, reading of blocks, and the engine."""
