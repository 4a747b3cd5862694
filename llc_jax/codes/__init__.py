"""Binary codes: signs, packed words, distances, codebooks, decoders."""
