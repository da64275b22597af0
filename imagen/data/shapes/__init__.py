"""The shapes world: endless captioned pictures of simple things, drawn at any resolution."""
