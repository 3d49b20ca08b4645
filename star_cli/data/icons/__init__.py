"""Pictures of everyday things, composed from an openly licensed icon set: what the shipped model learns to draw."""
