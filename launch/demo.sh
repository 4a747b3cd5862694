#!/usr/bin/env bash
# Trains 8-bit codes of handwritten digits, on a fresh machine with Python 3.11 or newer.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
.venv/bin/python -m llc_jax.main --config=digits_8bit "$@"
echo
echo "For the commands of the README:  source .venv/bin/activate"
