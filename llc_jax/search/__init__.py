"""From codes to neighbours: an exact index, its file, and its export to other programs."""
