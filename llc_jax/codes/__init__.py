"""The algebra of binary codes: signs, packed words, distances, codebooks."""
