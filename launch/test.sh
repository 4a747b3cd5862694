#!/usr/bin/env bash
# Runs the tests, on a fresh machine with Python 3.11 or newer. Arguments go to pytest.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
exec .venv/bin/python -m pytest "$@"
