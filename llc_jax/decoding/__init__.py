"""From codes to classes: exact, nearest, within a radius, and by the reliability of each bit."""
