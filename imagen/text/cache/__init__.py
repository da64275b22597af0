"""Captions encoded once: a folder that stands in for the text encoder while a stage trains.

    cache.json                   who encoded them, how many there are, format version (store.Manifest)
    captions-00000.safetensors   a shard: embeddings (tokens, D) without padding, offsets (n + 1,), keys (n, 16)

A caption is found by the hash of its text, so a cache serves any source that gives these captions, several captions a
picture cost nothing special, and equal captions are stored once. ``python -m imagen.text.cache`` writes it.

The null text of training and sampling is one zero token, made where it is needed and stored nowhere. The empty caption
"" is another thing: what the encoder makes of no words at all, the text of a picture without a caption. Every cache
has it.
"""
